// What the backends show to ops.c: how each is opened. ops_open alone calls these.
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H
#include "kernels/ops.h"

// ERR_INTERNAL when memory or threads cannot be had.
int ref_open(int n_threads, ops **out, err *e);

#endif
