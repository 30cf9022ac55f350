/* For LD_PRELOAD: a disk that takes a millisecond longer for each fdatasync, as a cloud's does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

int fdatasync(int fd)
{
    static int (*real)(int);
    struct timespec millisecond = {0, 1000000};

    if (!real)
        real = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
    nanosleep(&millisecond, 0);
    return real(fd);
}
