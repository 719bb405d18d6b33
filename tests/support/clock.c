/* Moves the real-time clock of the process that it is loaded into by the seconds that stand in a file, from moment to moment.
 *
 * Who asks for the time is answered by code that the kernel maps into each process (the vDSO), mostly through libc, but ClickHouse finds it by
 * itself. So the first instructions of that code are replaced by a jump to what stands here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *seconds;

/* Not by libc: it takes the way that leads here. An error is returned as the kernel returns it. */
#if defined(__x86_64__)
static const char *const NAMES[] = {"__vdso_clock_gettime", "__vdso_gettimeofday", "__vdso_time"};

static int64_t ask(clockid_t clock, struct timespec *time) {
    int64_t result;
    __asm__ volatile("syscall" : "=a"(result) : "a"((int64_t)SYS_clock_gettime), "D"((int64_t)clock), "S"(time) : "rcx", "r11", "memory");
    return result;
}

/* movabs r11, TO; jmp r11 */
struct __attribute__((packed)) jump { uint16_t move; uint64_t to; uint8_t jump[3]; };
static struct jump jump_to(uint64_t to) { return (struct jump){0xbb49, to, {0x41, 0xff, 0xe3}}; }
#elif defined(__aarch64__)
static const char *const NAMES[] = {"__kernel_clock_gettime", "__kernel_gettimeofday", 0};

static int64_t ask(clockid_t clock, struct timespec *time) {
    register int64_t result __asm__("x0") = clock;
    register struct timespec *to __asm__("x1") = time;
    register int64_t call __asm__("x8") = SYS_clock_gettime;
    __asm__ volatile("svc 0" : "+r"(result) : "r"(to), "r"(call) : "memory");
    return result;
}

/* ldr x16, TO; br x16 */
struct __attribute__((packed)) jump { uint32_t load, jump; uint64_t to; };
static struct jump jump_to(uint64_t to) { return (struct jump){0x58000050, 0xd61f0200, to}; }
#else
#error "clocks can't be moved on this processor yet"
#endif

static int moved_clock_gettime(clockid_t clock, struct timespec *time) {
    int64_t result = ask(clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *seconds;
    return (int)result;
}

static int moved_gettimeofday(struct timeval *time, void *zone) {
    struct timespec now;
    (void)zone;
    moved_clock_gettime(CLOCK_REALTIME, &now);
    if (time) *time = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

static time_t moved_time(time_t *time) {
    struct timespec now;
    moved_clock_gettime(CLOCK_REALTIME, &now);
    if (time) *time = now.tv_sec;
    return now.tv_sec;
}

/* Changes what may be done with the vDSO, as a whole: the kernel doesn't let its pages be told apart. Those written to become the process's own. */
static void protect(int protection) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    int done = 0;
    while (maps && !done && fgets(line, sizeof line, maps)) {
        unsigned long begin, end;
        if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &begin, &end) == 2) done = !mprotect((void *)begin, end - begin, protection);
    }
    if (!done) abort();
    fclose(maps);
}

static void lead(void *vdso, const char *name, uint64_t to) {
    void *from = name ? dlsym(vdso, name) : 0;
    if (!from) return;
    struct jump jump = jump_to(to);
    memcpy(from, &jump, sizeof jump);
    __builtin___clear_cache((char *)from, (char *)from + sizeof jump);
}

/* Were the whole machine's clock moved, the kernel would wait by the same clock as who computed until when. Times of other clocks are small. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) {
        const char *const versions[] = {"GLIBC_2.3.2", "GLIBC_2.17", "GLIBC_2.34"};
        for (int i = 0; i < 3 && !real; i++) *(void **)&real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", versions[i]);
        if (!real) abort();
    }
    struct timespec moved = *until;
    if (seconds && moved.tv_sec > 1000000000) moved.tv_sec -= *seconds;
    return real(condition, mutex, &moved);
}

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("CLOCK_OFFSET_FILE");
    int opened = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    if (opened < 0) return;
    void *mapped = mmap(0, sizeof *seconds, PROT_READ, MAP_SHARED, opened, 0);
    close(opened);
    void *vdso = dlopen("linux-vdso.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (mapped == MAP_FAILED || !vdso) abort();
    seconds = mapped;
    const uint64_t moved[] = {(uint64_t)moved_clock_gettime, (uint64_t)moved_gettimeofday, (uint64_t)moved_time};
    protect(PROT_READ | PROT_WRITE | PROT_EXEC);
    for (int i = 0; i < 3; i++) lead(vdso, NAMES[i], moved[i]);
    protect(PROT_READ | PROT_EXEC);
}
