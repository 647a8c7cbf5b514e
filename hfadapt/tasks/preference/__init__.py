"""Which of two answers is the better one."""
