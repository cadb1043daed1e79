#pragma once

/* What liburing.h leaves to the system, on glibc 2.28 and kernel headers 5.6 or newer. */

#include <linux/openat2.h>
#include <linux/time_types.h>

#include <linux/fs.h> /* where older kernel headers keep what blkdev.h has */
#if __has_include(<linux/blkdev.h>)
#include <linux/blkdev.h>
#endif
#ifndef BLOCK_URING_CMD_DISCARD
#define BLOCK_URING_CMD_DISCARD _IO(0x12, 0)
#endif
