// Attention inside rows on AMX tiles: which thread does what, and the names that Python calls.

#include <cmath>
#include <vector>

#include "attention_backward.h"
#include "attention_forward.h"

namespace {

// --- units of work -----------------------------------------------------------------------------------------------------

// Documents by key heads, the longest first; long ones in slices where there would be too few to share among threads.
static std::vector<Unit> units(const Problem &p, int threads) {
    std::vector<Unit> found;
    double total = 0;
    for (i64 b = 0; b < p.B; b++) total += (double)p.lengths[b] * p.lengths[b] * p.J;
    for (i64 b = 0; b < p.B; b++) {
        const i64 length = p.lengths[b];
        if (length <= 0) continue;
        i64 slices = 1;
        if (threads > 1 && length > 256) {
            const i64 fair = (i64)ceil((double)length * length * 4 * threads / total);
            slices = std::min({fair, length / 128, MOST_SLICES});
        }
        const i64 size = (length + slices - 1) / slices;
        for (i64 first = 0; first < length; first += size) {
            const i64 end = std::min(length, first + size);
            const i64 cost = (end - first) * (p.causal ? end + first : 2 * length);
            for (i64 j = 0; j < p.J; j++) found.push_back({b, j, first, end, cost, nullptr});
        }
    }
    std::stable_sort(found.begin(), found.end(), [](const Unit &a, const Unit &b) { return a.cost > b.cost; });
    return found;
}

struct Span {
    i64 first, end;
};

// Tokens between and after the documents.
static std::vector<Span> gaps(const Problem &p) {
    std::vector<Span> documents, found;
    for (i64 b = 0; b < p.B; b++) documents.push_back({p.starts[b], p.starts[b] + p.lengths[b]});
    std::sort(documents.begin(), documents.end(), [](const Span &a, const Span &b) { return a.first < b.first; });
    documents.push_back({p.N, p.N});
    i64 reached = 0;
    for (const Span &x : documents) {
        if (x.first > reached) found.push_back({reached, x.first});
        reached = std::max(reached, x.end);
    }
    return found;
}

struct Result {
    Array array;
    i64 heads;
};

static int run(const Problem &p, std::vector<Unit> &work, bool (*part)(const Problem &, const Unit &),
               const std::vector<Result> &results, int threads) {
    int failed = 0;
    const i64 count = (i64)work.size();
    const std::vector<Span> outside = gaps(p);
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        Scope scope;
#pragma omp for schedule(dynamic, 1) nowait
        for (i64 i = 0; i < count; i++) failed += !part(p, work[i]);
#pragma omp for schedule(dynamic, 1)
        for (i64 i = 0; i < (i64)outside.size(); i++)
            for (const Result &x : results)
                for (i64 n = outside[i].first; n < outside[i].end; n++) {
                    const i64 size = x.array.single ? 4 : 2;
                    memset((char *)x.array.data + n * x.array.token * size, 0, x.heads * p.E * size);
                }
    }
    return failed;
}

// Gradients of keys and values of sliced documents: the slices are added in order.
static void add_slices(const Problem &p, const std::vector<Unit> &work, int threads) {
    std::vector<std::vector<Unit>> groups(p.B * p.J);
    for (const Unit &u : work)
        if (u.partial) groups[u.document * p.J + u.head].push_back(u);
    std::vector<std::vector<Unit>> sliced;
    for (auto &group : groups) {
        if (group.empty()) continue;
        std::sort(group.begin(), group.end(), [](const Unit &a, const Unit &b) { return a.first < b.first; });
        sliced.push_back(group);
    }
    const i64 panels = p.padded() / BLOCK, most = blocks(*std::max_element(p.lengths, p.lengths + p.B));
#pragma omp parallel for collapse(2) num_threads(threads) schedule(dynamic, 4)
    for (i64 s = 0; s < (i64)sliced.size(); s++)
        for (i64 a = 0; a < most; a++) {
            const Unit &any = sliced[s][0];
            const i64 length = p.lengths[any.document], token = a * BLOCK;
            if (token >= length) continue;
            for (int which = 0; which < 2; which++) {
                float *parts[MOST_SLICES];
                i64 n = 0;
                for (const Unit &u : sliced[s]) {
                    i64 from, to;
                    key_range(p, u, &from, &to);
                    if (token < from || token >= to) continue;
                    const i64 size = blocks(to - from) * SCORES * panels;
                    parts[n++] = u.partial + which * size + (token - from) * panels * BLOCK;
                }
                for (i64 i = 1; i < n; i++)
                    for (i64 at = 0; at < panels * SCORES; at += 16)
                        _mm512_store_ps(parts[0] + at,
                                        _mm512_add_ps(_mm512_load_ps(parts[0] + at), _mm512_load_ps(parts[i] + at)));
                store_keys(parts[0], panels, which ? p.dv : p.dk, p.starts[any.document] + token, any.head,
                           std::min(BLOCK, length - token), p.E, which ? 1.0f : p.scale);
            }
        }
}

static int backward_of_all(const Problem &p, int threads) {
    std::vector<Unit> work = units(p, threads);
    i64 size = 0;
    for (const Unit &u : work)
        if (u.end - u.first < p.lengths[u.document]) size += partial_size(p, u);
    static thread_local Scratch sliced;
    float *partial = size ? sliced.get<float>(size) : nullptr;
    if (size && !partial) return 1;
    for (Unit &u : work)
        if (u.end - u.first < p.lengths[u.document]) u.partial = partial, partial += partial_size(p, u);
    const int failed = run(p, work, backward, {{p.dq, p.H}, {p.dk, p.J}, {p.dv, p.J}}, threads);
    if (size && !failed) add_slices(p, work, threads);
    return failed;
}

}  // namespace

// --- the names that Python calls ---------------------------------------------------------------------------------------

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
extern const i64 attention_sizes[] = {sizeof(Problem), sizeof(Array)};
}

// Results are contiguous, and become zero where no document is. Returned is the number of units that found no memory.
EXPORT int row_attention(const Problem *p, int threads) {
    return without_memory([&] {
        std::vector<Unit> work = units(*p, threads);
        return run(*p, work, forward, {{p->out, p->H}}, threads);
    });
}

EXPORT int row_attention_backward(const Problem *p, int threads) {
    return without_memory([&] { return backward_of_all(*p, threads); });
}
