/* Between a process and the C library: counts the writes below one folder, and at the n-th ends the process or says
   that there is no room. Loaded with LD_PRELOAD; armed by tests/faults/machine.py in a forked process. A write is
   whatever changes what another process would find: making, writing, renaming, removing and cutting files and folders,
   by Python, torch, safetensors (Rust) and Arrow (C++) alike. Syncing changes nothing for a process that is killed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long counted, fatal;
static int failure;

/* failure: 0 kills at the write number `at`; an errno fails it and all after it that need room. at 0 only counts. */
void faults_arm(const char *folder, long at, int error) {
    strncpy(root, folder, sizeof root - 1);
    counted = 0;
    fatal = at;
    failure = error;
}

long faults_counted(void) { return counted; }

static int below(const char *path) {
    size_t n = strlen(root);
    return n && path && !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}

/* Whether a name, relative to an open folder, or an open file lies below the folder. */
static int watched_at(int folder, const char *name) {
    char whole[2 * PATH_MAX], link[64];
    if (!root[0] || !name) return 0;
    if (name[0] == '/') return below(name);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, whole, PATH_MAX - 1);
        if (n < 0) return 0;
        whole[n] = 0;
    }
    strncat(whole, "/", 2);
    strncat(whole, name, PATH_MAX - 1);
    return below(whole);
}

static int watched(int file) {
    char link[64], path[PATH_MAX];
    if (!root[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a write; 1 where it is the fatal one, -1 where it fails with errno set. */
static int met(int needs_room) {
    ++counted;
    if (!fatal || counted < fatal) return 0;
    if (!failure) return counted == fatal;
    if (!needs_room) return 0;
    errno = failure;
    return -1;
}

#define REAL(type, name, ...)                                      \
    static type (*real)(__VA_ARGS__);                              \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define GUARD(is_watched, needs_room, failed)                      \
    if (is_watched) {                                              \
        int found = met(needs_room);                               \
        if (found > 0) die();                                      \
        if (found < 0) return failed;                              \
    }

static int there(int folder, const char *name) { return !faccessat(folder, name, F_OK, AT_SYMLINK_NOFOLLOW); }

/* Whether opening changes anything: a file is made or emptied. */
static int makes(int folder, const char *path, int flags) {
    return (flags & O_TRUNC) || ((flags & O_CREAT) && !there(folder, path));
}

#define OPEN(name)                                                 \
    int name(const char *path, int flags, ...) {                   \
        REAL(int, #name, const char *, int, ...);                  \
        va_list rest;                                              \
        va_start(rest, flags);                                     \
        mode_t mode = va_arg(rest, mode_t);                        \
        va_end(rest);                                              \
        GUARD(makes(AT_FDCWD, path, flags) && watched_at(AT_FDCWD, path), 1, -1)  \
        return real(path, flags, mode);                            \
    }
#define OPENAT(name)                                               \
    int name(int folder, const char *path, int flags, ...) {       \
        REAL(int, #name, int, const char *, int, ...);             \
        va_list rest;                                              \
        va_start(rest, flags);                                     \
        mode_t mode = va_arg(rest, mode_t);                        \
        va_end(rest);                                              \
        GUARD(makes(folder, path, flags) && watched_at(folder, path), 1, -1)    \
        return real(folder, path, flags, mode);                    \
    }
#define FOPEN(name)                                                \
    FILE *name(const char *path, const char *mode) {               \
        REAL(FILE *, #name, const char *, const char *);           \
        GUARD(strpbrk(mode, "wa") && watched_at(AT_FDCWD, path), 1, NULL) \
        return real(path, mode);                                   \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)

/* A process that is killed within a write leaves a part of it. */
ssize_t write(int file, const void *bytes, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (watched(file)) {
        int found = met(1);
        if (found > 0) {
            real(file, bytes, count / 2);
            die();
        }
        if (found < 0) return -1;
    }
    return real(file, bytes, count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    GUARD(watched(file), 1, -1)
    return real(file, parts, count);
}

#define PWRITE(name)                                               \
    ssize_t name(int file, const void *bytes, size_t count, off_t at) { \
        REAL(ssize_t, #name, int, const void *, size_t, off_t);    \
        GUARD(watched(file), 1, -1)                                \
        return real(file, bytes, count, at);                       \
    }
PWRITE(pwrite) PWRITE(pwrite64)

#define SENDFILE(name)                                             \
    ssize_t name(int to, int from, off_t *at, size_t count) {      \
        REAL(ssize_t, #name, int, int, off_t *, size_t);           \
        GUARD(watched(to), 1, -1)                                  \
        return real(to, from, at, count);                          \
    }
SENDFILE(sendfile) SENDFILE(sendfile64)

#define CUT(name)                                                  \
    int name(int file, off_t size) {                               \
        REAL(int, #name, int, off_t);                              \
        GUARD(watched(file), 1, -1)                                \
        return real(file, size);                                   \
    }
CUT(ftruncate) CUT(ftruncate64)

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    GUARD(watched_at(AT_FDCWD, to) || watched_at(AT_FDCWD, from), 0, -1)
    return real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    GUARD(watched_at(to_folder, to) || watched_at(from_folder, from), 0, -1)
    return real(from_folder, from, to_folder, to);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    GUARD(watched_at(AT_FDCWD, to), 1, -1)
    return real(from, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    GUARD(watched_at(to_folder, to), 1, -1)
    return real(from_folder, from, to_folder, to, flags);
}

int symlink(const char *to, const char *path) {
    REAL(int, "symlink", const char *, const char *);
    GUARD(watched_at(AT_FDCWD, path), 1, -1)
    return real(to, path);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    GUARD(watched_at(AT_FDCWD, path) && there(AT_FDCWD, path), 0, -1)
    return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    GUARD(watched_at(folder, path) && there(folder, path), 0, -1)
    return real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    GUARD(watched_at(AT_FDCWD, path) && there(AT_FDCWD, path), 0, -1)
    return real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    GUARD(watched_at(AT_FDCWD, path) && !there(AT_FDCWD, path), 1, -1)
    return real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    GUARD(watched_at(folder, path) && !there(folder, path), 1, -1)
    return real(folder, path, mode);
}
