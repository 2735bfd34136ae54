// The library's face: which instructions this CPU has, and the threads that run a program.
//
// The threads sleep between calls and belong to nobody else; one call runs at a time. After a fork the child has none of
// them, and makes its own at its first call.
#include <pthread.h>
#include <sched.h>
#include <stddef.h>

#include "step.h"

#define EXPORT __attribute__((visibility("default")))

enum { PLAIN, AVX2, AVX512, LEVELS, BRAIN = LEVELS };  // BRAIN: AVX-512 BF16, of attention alone
enum { MOST_THREADS = 64, SPINS = 2000 };

#define DECLARE(level)                                                              \
    void uncomp_execute_##level(const program *, const step *, int, int, meeting *); \
    void uncomp_multiply_##level(const product *, int, int);                         \
    void uncomp_pack_##level(const layout_change *, int, int);                       \
    void uncomp_unpack_##level(const layout_change *, int, int);                     \
    void uncomp_attend_##level(outlook *, int, int, meeting *)
DECLARE(plain);
#if defined(__x86_64__)
DECLARE(avx2);
DECLARE(avx512);
void uncomp_attend_brain(outlook *, int, int, meeting *);
#define OF_LEVEL(name) {uncomp_##name##_plain, uncomp_##name##_avx2, uncomp_##name##_avx512}
#else
#define OF_LEVEL(name) {uncomp_##name##_plain, NULL, NULL}
#endif
static void (*const EXECUTE[LEVELS])(const program *, const step *, int, int, meeting *) = OF_LEVEL(execute);
static void (*const MULTIPLY[LEVELS])(const product *, int, int) = OF_LEVEL(multiply);
static void (*const PACK[LEVELS])(const layout_change *, int, int) = OF_LEVEL(pack);
static void (*const UNPACK[LEVELS])(const layout_change *, int, int) = OF_LEVEL(unpack);
static void (*const ATTEND_MANY[LEVELS + 1])(outlook *, int, int, meeting *) = {
    uncomp_attend_plain,
#if defined(__x86_64__)
    uncomp_attend_avx2, uncomp_attend_avx512, uncomp_attend_brain,
#endif
};

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t enabled_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

static int best_level(void) {
    unsigned a, b, c, d, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return PLAIN;
    unsigned fma = 1u << 12, osxsave = 1u << 27, f16c = 1u << 29, avx2 = 1u << 5;
    unsigned wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, vnni = 1u << 11;  // AVX-512 F, DQ, BW, VL
    if ((c & (fma | osxsave | f16c)) != (fma | osxsave | f16c) || !(b7 & avx2)) return PLAIN;
    uint64_t state = enabled_state();
    if ((state & 0x6) != 0x6) return PLAIN;
    return (b7 & wide) == wide && (c7 & vnni) && (state & 0xe6) == 0xe6 ? AVX512 : AVX2;
}

static int has_brain(void) {
    unsigned a, b, c, d;
    return best_level() == AVX512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5);
}
#else
static int best_level(void) { return PLAIN; }
static int has_brain(void) { return 0; }
#endif

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// One turn of waiting: at first awake, then giving way to others.
static void wait_on(int *spins) {
    if ((*spins)++ < SPINS) pause_briefly();
    else sched_yield();
}

void uncomp_meet(meeting *here) {
    int32_t round = __atomic_load_n(&here->round, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&here->arrived, 1, __ATOMIC_ACQ_REL) == here->threads) {
        __atomic_store_n(&here->arrived, 0, __ATOMIC_RELAXED);
        __atomic_add_fetch(&here->round, 1, __ATOMIC_RELEASE);
    } else {
        for (int spins = 0; __atomic_load_n(&here->round, __ATOMIC_ACQUIRE) == round;) wait_on(&spins);
    }
}

typedef enum { STEPS, PRODUCTS, PACKS, UNPACKS, OUTLOOKS } purpose;

typedef struct {
    purpose purpose;
    int level;
    const void *what;
    const step *step;
    outlook *outlook;
} task;

static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER, sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static int workers, watching_forks;
static int32_t turn;                 // counts calls
static int32_t known[MOST_THREADS];  // the call before the one that a thread was made for
static int32_t working;              // threads that have not ended the present call
static task current;
static meeting here;

static void work(int thread) {
    switch (current.purpose) {
        case STEPS: EXECUTE[current.level](current.what, current.step, thread, here.threads, &here); break;
        case PRODUCTS: MULTIPLY[current.level](current.what, thread, here.threads); break;
        case PACKS: PACK[current.level](current.what, thread, here.threads); break;
        case UNPACKS: UNPACK[current.level](current.what, thread, here.threads); break;
        case OUTLOOKS: ATTEND_MANY[current.level](current.outlook, thread, here.threads, &here); break;
    }
    __atomic_sub_fetch(&working, 1, __ATOMIC_RELEASE);
}

static void *serve(void *argument) {
    int thread = (int)(intptr_t)argument;
    int32_t seen = known[thread];
    for (;;) {
        for (int spins = 0; spins < SPINS && __atomic_load_n(&turn, __ATOMIC_ACQUIRE) == seen; spins++) pause_briefly();
        pthread_mutex_lock(&sleeping);
        while (turn == seen) pthread_cond_wait(&woken, &sleeping);
        seen = turn;
        int wanted = thread < here.threads;
        pthread_mutex_unlock(&sleeping);
        if (wanted) work(thread);
    }
    return NULL;
}

static void forget_workers(void) {  // in the child of a fork
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t unsignalled = PTHREAD_COND_INITIALIZER;
    calling = sleeping = fresh;
    woken = unsignalled;
    workers = 0;
    turn = 0;
}

static void hire(int threads) {
    if (!watching_forks) watching_forks = pthread_atfork(NULL, NULL, forget_workers) == 0;
    while (workers < threads - 1) {
        pthread_t made;
        known[workers + 1] = turn;
        if (pthread_create(&made, NULL, serve, (void *)(intptr_t)(workers + 1)) != 0) break;
        pthread_detach(made);
        workers++;
    }
}

static void run(task what, int threads) {
    pthread_mutex_lock(&calling);
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    hire(threads);
    threads = threads > workers + 1 ? workers + 1 : threads;
    pthread_mutex_lock(&sleeping);
    current = what;
    here = (meeting){threads, 0, 0};
    working = threads;
    __atomic_add_fetch(&turn, 1, __ATOMIC_RELEASE);
    if (threads > 1) pthread_cond_broadcast(&woken);
    pthread_mutex_unlock(&sleeping);
    work(0);
    for (int spins = 0; __atomic_load_n(&working, __ATOMIC_ACQUIRE) > 0;) wait_on(&spins);
    pthread_mutex_unlock(&calling);
}

EXPORT int64_t uncomp_version(void) { return VERSION; }

EXPORT int64_t uncomp_level(void) { return best_level(); }

// Whether attention multiplies 16-bit floats in instructions of their own.
EXPORT int64_t uncomp_brain(void) { return has_brain(); }

// How many bytes what Python declares must have: operation, fewer, held, program, step, product, layout_change,
// outlook.
EXPORT int64_t uncomp_size(int64_t which) {
    static const int64_t sizes[] = {sizeof(operation), sizeof(fewer), sizeof(held), sizeof(program), sizeof(step), sizeof(product),
                                    sizeof(layout_change), sizeof(outlook)};
    return which >= 0 && which < 8 ? sizes[which] : -1;
}

// Run a program; each head of a strand then has as many entries more as the strand has rows.
EXPORT void uncomp_step(int64_t level, const program *p, const step *now, int64_t threads) {
    run((task){STEPS, (int)level, p, now, NULL}, (int)threads);
    for (int64_t layer = 0; layer < p->layers; layer++) {
        for (int64_t head = 0; head < now->strands * p->groups; head++) {
            int64_t strand = head / p->groups;
            now->cache[layer]->ends[head] += now->firsts[strand + 1] - now->firsts[strand];
        }
    }
}

EXPORT void uncomp_product(int64_t level, const product *p, int64_t threads) {
    run((task){PRODUCTS, (int)level, p, NULL, NULL}, (int)threads);
}

EXPORT void uncomp_pack(int64_t level, const layout_change *c, int64_t threads) {
    run((task){PACKS, (int)level, c, NULL, NULL}, (int)threads);
}

EXPORT void uncomp_unpack(int64_t level, const layout_change *c, int64_t threads) {
    run((task){UNPACKS, (int)level, c, NULL, NULL}, (int)threads);
}

// Attention of many tokens, by 16-bit floats where `level` is one more than there are.
EXPORT void uncomp_attend(int64_t level, outlook *o, int64_t threads) {
    run((task){OUTLOOKS, (int)level, NULL, NULL, o}, (int)threads);
}
