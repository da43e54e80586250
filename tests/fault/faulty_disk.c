// A disk that fails one process: preloaded, it refuses what is done to files below $FAULTY_DISK
// with the errno that stands in the file $FAULTY_DISK_ERRNO, while there is such a file.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

// By system calls, as what is defined below would ask here again.
static int failing(void) {
    char text[16] = {0};
    const char* told = getenv("FAULTY_DISK_ERRNO");
    int file = told ? (int)syscall(SYS_openat, AT_FDCWD, told, O_RDONLY) : -1;
    if (file < 0) return 0;
    syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    return atoi(text);
}

static int refuses_path(const char* path) {
    const char* directory = getenv("FAULTY_DISK");
    if (!directory || strncmp(path, directory, strlen(directory)) != 0) return 0;
    int error = failing();
    if (error) errno = error;
    return error != 0;
}

static int refuses(int file) {
    int before = errno;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (n < 0) {
        errno = before;
        return 0;
    }
    path[n] = 0;
    return refuses_path(path);
}

// A disk that is mounted read-only can still be read.
static int refuses_to_read(int file) {
    return failing() == EIO && refuses(file);
}

#define WRITING(type, name, parameters, ...)                 \
    type name parameters {                                   \
        return refuses(file) ? -1 : REAL(name)(__VA_ARGS__); \
    }
#define READING(type, name, parameters, ...)                         \
    type name parameters {                                           \
        return refuses_to_read(file) ? -1 : REAL(name)(__VA_ARGS__); \
    }

WRITING(ssize_t, write, (int file, const void* data, size_t n), file, data, n)
WRITING(ssize_t, pwrite, (int file, const void* data, size_t n, off_t at), file, data, n, at)
WRITING(ssize_t, pwrite64, (int file, const void* data, size_t n, off64_t at), file, data, n, at)
WRITING(int, fsync, (int file), file)
WRITING(int, fdatasync, (int file), file)
WRITING(int, ftruncate, (int file, off_t n), file, n)
WRITING(int, ftruncate64, (int file, off64_t n), file, n)
READING(ssize_t, read, (int file, void* data, size_t n), file, data, n)
READING(ssize_t, pread, (int file, void* data, size_t n, off_t at), file, data, n, at)
READING(ssize_t, pread64, (int file, void* data, size_t n, off64_t at), file, data, n, at)

int mkdir(const char* path, mode_t mode) {
    return refuses_path(path) ? -1 : REAL(mkdir)(path, mode);
}
int unlink(const char* path) {
    return refuses_path(path) ? -1 : REAL(unlink)(path);
}
int rename(const char* from, const char* to) {
    return refuses_path(to) ? -1 : REAL(rename)(from, to);
}

#define OPENING(name)                                                             \
    int name(const char* path, int flags, ...) {                                  \
        va_list more;                                                             \
        va_start(more, flags);                                                    \
        mode_t mode = (flags & O_CREAT) ? va_arg(more, mode_t) : 0;               \
        va_end(more);                                                             \
        int writes = (flags & (O_ACCMODE | O_CREAT)) != O_RDONLY;                 \
        return writes && refuses_path(path) ? -1 : REAL(name)(path, flags, mode); \
    }

OPENING(open)
OPENING(open64)
