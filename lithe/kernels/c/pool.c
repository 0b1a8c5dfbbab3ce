/* A small pool of threads. The caller is thread 0; the others wait spinning, then yielding, then asleep.
 *
 * A sleeping worker is often woken on the caller's own core: the caller therefore yields while it waits, otherwise the
 * worker would not run before the scheduler's next tick, milliseconds later.
 *
 * Where something else runs on the cores, every wait may take such a tick. So the caller's waits are timed, and when one thread
 * alone would have been faster, jobs run on the caller alone for a while, which changes no result.
 */
#define _GNU_SOURCE
#include "lithe.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { MOST = 256, PAUSES = 1000, YIELDS = 8000 }; /* microseconds of pauses, then milliseconds of yields */
enum { WINDOW_NS = 20000000, ALONE_NS = 50000000, ALONE_MOST_NS = 1600000000 }; /* judged over; alone for, at first and at most */

static pthread_mutex_t one_job = PTHREAD_MUTEX_INITIALIZER, door = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;
static _Atomic uint64_t turn;  /* job number * MOST + threads - 1: a worker learns both in one load */
static _Atomic int sleepers, left;
static _Atomic unsigned arrived;
static int workers;
static Work work;
static void *job;
static void *scratch;
static size_t scratch_size;
static int64_t waited_ns;                  /* what the caller spent on waiting in the job under way, time off its core left out */
static int64_t pauses_ns;                  /* how long PAUSES pauses take */
static int64_t window_ns, busy_ns, alone_ns, alone_for_ns = ALONE_NS;
static int last_threads;
static _Atomic int64_t alone_jobs;
static _Atomic int cores[MOST]; /* where each thread began its last job */

static inline void relax(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void wait_a_little(int *turns) {
    if (*turns < PAUSES + YIELDS) ++*turns; /* no further: a wait may be long */
    if (*turns < PAUSES) relax();
    else sched_yield();
}

/* Every thread computes with the same rounding and without denormals, whatever its caller had set. */
static unsigned enter(void) {
#if defined(__x86_64__)
    unsigned old = _mm_getcsr();
    _mm_setcsr(0x9fc0);
    return old;
#else
    return 0;
#endif
}
static void leave(unsigned old) {
#if defined(__x86_64__)
    _mm_setcsr(old);
#else
    (void)old;
#endif
}

/* A woken worker is often put on its caller's core, and stays there for many passes, at half the speed: both are never seen waiting for
 * it, as they yield. So a worker leaves a core that one before it has, where there is another that it may use. */
static void take_core(int index) {
#if defined(__linux__)
    cpu_set_t mine, others;
    const int core = sched_getcpu();
    int shared = 0;
    for (int i = 0; i < index; i++) shared |= atomic_load(&cores[i]) == core;
    atomic_store(&cores[index], core);
    if (!shared || core < 0 || pthread_getaffinity_np(pthread_self(), sizeof mine, &mine)) return;
    others = mine;
    for (int i = 0; i < index; i++) CPU_CLR(atomic_load(&cores[i]), &others);
    if (!CPU_COUNT(&others) || pthread_setaffinity_np(pthread_self(), sizeof others, &others)) return;
    pthread_setaffinity_np(pthread_self(), sizeof mine, &mine); /* it need not stay for good */
    atomic_store(&cores[index], sched_getcpu());
#else
    (void)index;
#endif
}

static uint64_t next_turn(uint64_t seen) {
    for (int i = 0; i < PAUSES + YIELDS; wait_a_little(&i)) {
        uint64_t now = atomic_load(&turn);
        if (now != seen) return now;
    }
    pthread_mutex_lock(&door);
    atomic_fetch_add(&sleepers, 1);
    while (atomic_load(&turn) == seen) pthread_cond_wait(&bell, &door);
    atomic_fetch_sub(&sleepers, 1);
    pthread_mutex_unlock(&door);
    return atomic_load(&turn);
}

typedef struct { int index; uint64_t seen; } Start;

static void *worker(void *arg) {
    Start start = *(Start *)arg;
    free(arg);
    enter();
    for (uint64_t seen = start.seen;;) {
        seen = next_turn(seen);
        int threads = (int)(seen % MOST) + 1;
        if (start.index < threads) { /* only then is the job sure to stay until this thread is done */
            take_core(start.index);
            work(job, start.index, threads);
            atomic_fetch_sub(&left, 1);
        }
    }
    return NULL;
}

/* In a forked child the workers are gone, and a lock may have been held by one of them. */
static void forked(void) {
    pthread_mutex_init(&one_job, NULL);
    pthread_mutex_init(&door, NULL);
    pthread_cond_init(&bell, NULL);
    workers = 0;
    atomic_store(&sleepers, 0);
}

static void time_pauses(void) {
    for (int i = 0; i < 3; i++) { /* the least of three, as something else may run meanwhile */
        int64_t begun = now_ns(CLOCK_MONOTONIC);
        for (int j = 0; j < PAUSES; j++) relax();
        int64_t took = now_ns(CLOCK_MONOTONIC) - begun;
        pauses_ns = !i || took < pauses_ns ? took : pauses_ns;
    }
}

static int grow(int wanted) {
    static int registered;
    if (!pauses_ns) time_pauses();
    if (!registered) registered = pthread_atfork(NULL, NULL, forked) == 0;
    for (; workers < wanted; workers++) {
        pthread_t thread;
        Start *start = malloc(sizeof *start);
        if (!start) break;
        *start = (Start){workers + 1, atomic_load(&turn)};
        if (pthread_create(&thread, NULL, worker, start)) {
            free(start);
            break;
        }
        pthread_detach(thread);
    }
    return workers < wanted ? workers : wanted;
}

void pool_lock(void) { pthread_mutex_lock(&one_job); }
void pool_unlock(void) { pthread_mutex_unlock(&one_job); }

void *pool_scratch(size_t bytes) {
    if (bytes > scratch_size) {
        free(scratch);
        scratch_size = (bytes + 4095) & ~(size_t)4095;
        scratch = aligned_alloc(64, scratch_size);
        if (!scratch) abort(); /* as out of memory ends any other C library's promise */
    }
    return scratch;
}

/* A job of several threads took so long, of which the caller worked so long: alone it would have worked that long times them, or,
 * with another on its core, twice that. */
static void judge(int64_t spent, int64_t worked, int threads) {
    window_ns += spent, busy_ns += worked;
    if (window_ns < WINDOW_NS) return;
    const int worse = 2 * busy_ns * threads < window_ns;
    alone_ns = worse ? alone_for_ns : 0;
    alone_for_ns = !worse ? ALONE_NS : alone_for_ns * 2 < ALONE_MOST_NS ? alone_for_ns * 2 : ALONE_MOST_NS;
    window_ns = busy_ns = 0;
}

static int all_left(unsigned nothing) { return (void)nothing, !atomic_load(&left); }
static int all_arrived(unsigned until) { return (int)(atomic_load(&arrived) - until) >= 0; }

/* Wait until it is so; a wait that is not short is timed where it is the caller's. */
static inline __attribute__((always_inline)) void wait_for(int (*so)(unsigned), unsigned what, int timed) {
    int64_t since = 0;
    for (int i = 0; !so(what); wait_a_little(&i))
        if (timed && i == PAUSES - 1) since = now_ns(CLOCK_THREAD_CPUTIME_ID);
    if (since) waited_ns += pauses_ns + now_ns(CLOCK_THREAD_CPUTIME_ID) - since;
}

static void share_out(Work todo, void *with, int threads) {
#if defined(__linux__)
    atomic_store(&cores[0], sched_getcpu());
#endif
    work = todo;
    job = with;
    atomic_store(&left, threads - 1);
    atomic_store(&turn, (atomic_load(&turn) / MOST + 1) * MOST + (unsigned)(threads - 1));
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&door);
        pthread_cond_broadcast(&bell);
        pthread_mutex_unlock(&door);
    }
    todo(with, 0, threads);
    wait_for(all_left, 0, 1);
}

void pool_run(Work todo, void *with, int threads) {
    threads = threads < 1 ? 1 : threads > MOST ? MOST : threads;
    if (threads > 1) threads = grow(threads - 1) + 1;
    if (threads > 1 && threads != last_threads) last_threads = threads, alone_ns = window_ns = busy_ns = 0, alone_for_ns = ALONE_NS;
    unsigned old = enter();
    atomic_store(&arrived, 0);
    const int64_t begun = threads > 1 ? now_ns(CLOCK_MONOTONIC) : 0;
    if (threads > 1 && alone_ns <= 0) {
        const int64_t busy = now_ns(CLOCK_THREAD_CPUTIME_ID);
        waited_ns = 0;
        share_out(todo, with, threads);
        judge(now_ns(CLOCK_MONOTONIC) - begun, now_ns(CLOCK_THREAD_CPUTIME_ID) - busy - waited_ns, threads);
    } else {
        todo(with, 0, 1);
        if (threads > 1) alone_ns -= now_ns(CLOCK_MONOTONIC) - begun, atomic_fetch_add(&alone_jobs, 1);
    }
    leave(old);
}

/* How many jobs of several threads ran on one so far, as something else used the cores. */
int64_t lithe_alone(void) { return atomic_load(&alone_jobs); }

void pool_barrier(int thread, int threads) {
    if (threads == 1) return;
    unsigned ticket = atomic_fetch_add(&arrived, 1), until = (ticket / threads + 1) * threads;
    wait_for(all_arrived, until, thread == 0);
}
