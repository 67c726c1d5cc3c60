"""System call numbers: x86-64 (asm/unistd_64.h) and aarch64 (asm-generic/unistd.h); -1 where there is no such call."""

ALLOWED: dict[str, tuple[int, int]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286), "pwritev2": (328, 287),
    "open": (2, -1), "openat": (257, 56), "close": (3, 57), "close_range": (436, 436), "creat": (85, -1),
    "stat": (4, -1), "fstat": (5, 80), "lstat": (6, -1), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, -1), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, -1),
    "readlinkat": (267, 78), "lseek": (8, 62), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "getdents": (78, -1), "getdents64": (217, 61), "rename": (82, -1), "renameat": (264, 38),
    "renameat2": (316, 276), "unlink": (87, -1), "unlinkat": (263, 35), "fsync": (74, 82), "fdatasync": (75, 83),
    "ftruncate": (77, 46), "fallocate": (285, 47), "umask": (95, 166), "statfs": (137, 43),
    "fstatfs": (138, 44), "fadvise64": (221, 223), "readahead": (187, 213), "sendfile": (40, 71),
    "copy_file_range": (326, 285), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216),
    "brk": (12, 214), "madvise": (28, 233), "msync": (26, 227), "mincore": (27, 232), "membarrier": (324, 283),
    "poll": (7, -1), "ppoll": (271, 73), "select": (23, -1), "pselect6": (270, 72), "epoll_create": (213, -1),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, -1), "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441), "eventfd": (284, -1), "eventfd2": (290, 19), "pipe": (22, -1), "pipe2": (293, 59),
    "dup": (32, 23), "dup2": (33, -1), "dup3": (292, 24), "timerfd_create": (283, 85), "timerfd_settime": (286, 86),
    "timerfd_gettime": (287, 87), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "pause": (34, -1), "alarm": (37, -1), "getitimer": (36, 102), "setitimer": (38, 103),
    "timer_create": (222, 107), "timer_settime": (223, 110), "timer_gettime": (224, 108),
    "timer_getoverrun": (225, 109), "timer_delete": (226, 111), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, -1), "times": (100, 153), "getpid": (39, 172), "getppid": (110, 173),
    "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, -1),
    "getpgid": (121, 155), "getsid": (124, 156), "capget": (125, 90), "uname": (63, 160), "sysinfo": (99, 179),
    "getrlimit": (97, 163), "getrusage": (98, 165), "getpriority": (140, 141), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168), "wait4": (61, 260), "waitid": (247, 95),
    "futex": (202, 98), "futex_waitv": (449, 449), "set_robust_list": (273, 99), "rseq": (334, 293),
    "set_tid_address": (218, 96), "arch_prctl": (158, -1), "restart_syscall": (219, 128), "getrandom": (318, 278),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
"""Calls that reach nothing beyond the process and what Landlock leaves it."""

CONDITIONAL: dict[str, tuple[int, int]] = {
    "ioctl": (16, 29), "fcntl": (72, 25), "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131),
    "prctl": (157, 167), "prlimit64": (302, 261),
}  # fmt: skip
"""Calls that are allowed with some arguments only: see seccomp."""

FIRST_NEW_CALL = 424
"""From here on numbers are the same everywhere, and newer than this: libraries expect ENOSYS and fall back."""
