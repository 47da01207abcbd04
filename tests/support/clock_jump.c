/* Shifts a process's wall clock by what a file says: for LD_PRELOAD, in tests of clock jumps. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const long long *shift;

__attribute__((constructor)) static void open_shift(void) {
    const char *path = getenv("LEPTON_TEST_CLOCK");
    int handle = path ? open(path, O_RDONLY) : -1;
    if (handle < 0) return;
    void *found = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, handle, 0);
    if (found != MAP_FAILED) shift = found;
    close(handle);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *shift;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    if (clock_gettime(CLOCK_REALTIME, &found)) return (time_t)-1;
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
