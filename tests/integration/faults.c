/* Faults of file systems, clocks and networks for a program that is run with LD_PRELOAD.

   FAULT_PREFIX=/a:/b   below these folders writing fails ...
   FAULT_ERRNO=28       ... with this error,
   FAULT_MARK=/c        ... once this file exists (empty: at once)
   FAULT_LOCKS=1        flock and fcntl locks fail with ENOLCK
   FAULT_CLOCK=-7200    seconds added to the clock
   FAULT_NETWORK=/d     connections to other machines and look-ups of names fail and are noted in this file
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = dlsym(RTLD_NEXT, name)

static int active(void) {
    const char *mark = getenv("FAULT_MARK");
    return getenv("FAULT_PREFIX") && (!mark || !*mark || access(mark, F_OK) == 0);
}

static int fails(const char *path) {
    if (!path || !active()) return 0;
    char buffer[4096], prefixes[4096];
    if (path[0] != '/' && getcwd(buffer, 2048)) {
        strncat(buffer, "/", 2);
        strncat(buffer, path, 2000);
        path = buffer;
    }
    snprintf(prefixes, sizeof prefixes, "%s", getenv("FAULT_PREFIX"));
    for (char *one = strtok(prefixes, ":"); one; one = strtok(NULL, ":"))
        if (strncmp(path, one, strlen(one)) == 0) {
            errno = atoi(getenv("FAULT_ERRNO") ? getenv("FAULT_ERRNO") : "28");
            return 1;
        }
    return 0;
}

static int fails_fd(int fd) {
    if (fd < 3 || !active()) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t n = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (n <= 0) return 0;
    path[n] = 0;
    return fails(path);
}

static int makes(int flags) { return flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR); }

static mode_t mode_of(int flags, va_list list) { return flags & O_CREAT ? (mode_t)va_arg(list, int) : 0; }

/* A full disk still takes names of new files; a read-only one takes nothing. */
static int read_only(void) {
    const char *number = getenv("FAULT_ERRNO");
    return number && (atoi(number) == EROFS || atoi(number) == EACCES);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = mode_of(flags, list); va_end(list); \
        REAL(int, #name, const char *, int, ...); \
        if (makes(flags) && read_only() && fails(path)) return -1; \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); mode_t mode = mode_of(flags, list); va_end(list); \
        REAL(int, #name, int, const char *, int, ...); \
        if (makes(flags) && read_only() && fails(path)) return -1; \
        return real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return fails(path) ? -1 : real(path, mode);
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    return read_only() && fails(to) ? -1 : real(from, to);
}
int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return read_only() && fails(to) ? -1 : real(from, to);
}
int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    return read_only() && fails(path) ? -1 : real(path);
}
int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    return read_only() && fails(path) ? -1 : real(path);
}
ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    return n && fails_fd(fd) ? -1 : real(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *data, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return fails_fd(fd) ? -1 : real(fd, data, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    return fails_fd(fd) ? -1 : real(fd, data, n, at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    return fails_fd(fd) ? -1 : real(fd, data, n, at);
}
ssize_t sendfile(int out, int in, off_t *at, size_t n) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    return fails_fd(out) ? -1 : real(out, in, at, n);
}
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) {
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    return fails_fd(out) ? -1 : real(out, in, at, n);
}

static int no_locks(void) {
    if (!getenv("FAULT_LOCKS")) return 0;
    errno = ENOLCK;
    return 1;
}
int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    return no_locks() ? -1 : real(fd, operation);
}
#define FCNTL(name) \
    int name(int fd, int command, ...) { \
        va_list list; va_start(list, command); void *argument = va_arg(list, void *); va_end(list); \
        REAL(int, #name, int, int, ...); \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW; \
        return locks && no_locks() ? -1 : real(fd, command, argument); \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

static long ahead(void) {
    const char *seconds = getenv("FAULT_CLOCK");
    return seconds ? atol(seconds) : 0;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += ahead();
    return result;
}
time_t time(time_t *now) {
    struct timespec value;
    clock_gettime(CLOCK_REALTIME, &value);
    if (now) *now = value.tv_sec;
    return value.tv_sec;
}

static void note(const char *what) {
    REAL(ssize_t, "write", int, const void *, size_t);
    int fd = open(getenv("FAULT_NETWORK"), O_WRONLY | O_CREAT | O_APPEND, 0666);
    if (fd < 0) return;
    char line[512];
    int n = snprintf(line, sizeof line, "%d %s\n", (int)getpid(), what);
    if (real(fd, line, n) < 0) perror("faults");
    close(fd);
}
int connect(int fd, const struct sockaddr *address, socklen_t n) {
    REAL(int, "connect", int, const struct sockaddr *, socklen_t);
    if (getenv("FAULT_NETWORK") && address->sa_family != AF_UNIX) {
        note("connect");
        errno = ENETUNREACH;
        return -1;
    }
    return real(fd, address, n);
}
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    REAL(int, "getaddrinfo", const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (getenv("FAULT_NETWORK") && name) {
        note(name);
        return EAI_AGAIN;
    }
    return real(name, service, hints, found);
}
