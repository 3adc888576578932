/* A CUDA driver without a GPU: its memory is the host's, its streams are done at once, and its
   kernels do nothing but tell what they were given. What would be wrong on a GPU returns an error:
   a thread that has not chosen the GPU, memory freed twice, waiting or working on another stream
   while one is captured. So the host's side of numbagrad runs through NVIDIA's own library.

   Signatures: NVIDIA, "CUDA Driver API", version 13. A name ends in the version of the function. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef uint64_t Pointer; /* into the GPU's memory */
enum { OK, INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT = 201, NOT_FOUND = 500, CAPTURED = 900 };

/* ------------------------------------------------------------------ what the tests ask and tell */

static int launches, replayed, waits, attached; /* `attached`: streams told to wait for an event */
static int served = 13000;                      /* the version of CUDA, 1000 x major + 10 x minor */
static size_t limit = SIZE_MAX;                 /* bytes of memory that there are */
static size_t live;                             /* bytes taken now */
static void (*on_launch)(const char *name, void **arguments);

int driver_launches(void) { return launches; }
int driver_replayed(void) { return replayed; }
int driver_waits(void) { return waits; }
int driver_attached(void) { return attached; }
size_t driver_live(void) { return live; }
void driver_serve(int version) { served = version; }
void driver_limit(size_t bytes) { limit = bytes; }
void driver_on_launch(void (*callback)(const char *, void **)) { on_launch = callback; }

/* ------------------------------------------------------------------------- functions by name */

Result cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags,
                           int *status) {
    static const char *suffixes[] = {"", "_v2", "_v3"};
    static void *self;
    if (!self) {
        Dl_info info;
        dladdr((void *)&cuGetProcAddress_v2, &info);
        self = dlopen(info.dli_fname, RTLD_NOW);
    }
    *function = NULL;
    for (int i = 0; i < 3 && !*function; i++) {
        char full[256];
        snprintf(full, sizeof full, "%s%s", name, suffixes[i]);
        *function = dlsym(self, full);
    }
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}

Result cuGetErrorName(Result error, const char **name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR";
    return OK;
}
Result cuGetErrorString(Result error, const char **text) { return cuGetErrorName(error, text); }

/* ------------------------------------------------------------------------ the GPU, its context */

static int context;
static __thread void *current;

Result cuInit(unsigned flags) { return OK; }
Result cuDriverGetVersion(int *version) { *version = served; return OK; }
Result cuDeviceGet(int *device, int number) { *device = 0; return number ? 101 : OK; }
Result cuDeviceGetCount(int *count) { *count = 1; return OK; }
Result cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "Stand-in");
    return OK;
}
Result cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 0, 16); return OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; /* compute capability 9.0 */
    return OK;
}
Result cuDevicePrimaryCtxRetain(void **found, int device) { *found = &context; return OK; }
Result cuDevicePrimaryCtxRelease_v2(int device) { return OK; }
Result cuCtxSetCurrent(void *chosen) { current = chosen; return OK; }
Result cuCtxGetCurrent(void **found) { *found = current; return OK; }
Result cuCtxGetDevice(int *device) { *device = 0; return current ? OK : INVALID_CONTEXT; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return OK; }

/* ----------------------------------------------------------------------------------- capturing */

typedef struct { int launches; } Graph;
static Graph *graph;    /* while a stream is captured */
static void *captured;  /* that stream */

/* Whether work on a stream becomes a part of the graph; what may not be done now is an error. */
static Result note(void *stream, int *is_captured) {
    *is_captured = graph && stream == captured;
    if (!current) return INVALID_CONTEXT;
    return graph && !*is_captured ? CAPTURED : OK;
}

Result cuStreamBeginCapture_v2(void *stream, int mode) {
    graph = calloc(1, sizeof *graph);
    captured = stream;
    return OK;
}
Result cuStreamGetCaptureInfo_v3(void *stream, int *status, uint64_t *number, Graph **found,
                                 void *nodes, void *edges, size_t *count) {
    *status = graph && stream == captured;
    if (number) *number = 1;
    if (found) *found = graph;
    if (count) *count = 0;
    return OK;
}
Result cuStreamIsCapturing(void *stream, int *status) {
    *status = graph && stream == captured;
    return OK;
}
Result cuStreamEndCapture(void *stream, Graph **made) { *made = graph; graph = NULL; return OK; }
Result cuGraphInstantiateWithParams(Graph **made, Graph *source, void *params) {
    *made = malloc(sizeof **made);
    **made = *source;
    memset((char *)params + 24, 0, 4); /* the result: all is well */
    return OK;
}

Result cuGraphLaunch(Graph *executable, void *stream) {
    int is_captured;
    replayed += executable->launches;
    return note(stream, &is_captured);
}
Result cuGraphDestroy(Graph *old) { free(old); return OK; }
Result cuGraphExecDestroy(Graph *old) { free(old); return OK; }
Result cuGraphGetNodes(Graph *of, void *nodes, size_t *count) { *count = 0; return OK; }
Result cuGraphExecUpdate_v2(Graph *executable, Graph *source, void *result) { return NOT_FOUND; }
Result cuUserObjectCreate(void **made, void *of, void *destroy, unsigned count, unsigned flags) {
    *made = malloc(1);
    return OK;
}
Result cuUserObjectRelease(void *object, unsigned count) { return OK; }
Result cuGraphRetainUserObject(Graph *of, void *object, unsigned count, unsigned flags) { return OK; }
Result cuGraphReleaseUserObject(Graph *of, void *object, unsigned count) { return OK; }

/* -------------------------------------------------------------------------------------- memory */

typedef struct { size_t used, most; uint64_t threshold; } Pool;
typedef struct Block { Pointer address; size_t bytes; Pool *pool; struct Block *next; } Block;
static Block *blocks;

Result cuMemPoolCreate(Pool **made, const void *properties) {
    *made = calloc(1, sizeof **made);
    return OK;
}
Result cuMemPoolDestroy(Pool *pool) { return OK; }
Result cuMemPoolSetAccess(Pool *pool, const void *who, size_t count) { return OK; }
Result cuMemPoolSetAttribute(Pool *pool, int attribute, uint64_t *value) {
    if (attribute == 4) pool->threshold = *value;
    return OK;
}
Result cuMemPoolGetAttribute(Pool *pool, int attribute, uint64_t *value) {
    *value = attribute == 4 ? pool->threshold : attribute == 7 ? pool->used : pool->most;
    return OK;
}
Result cuMemAllocFromPoolAsync(Pointer *address, size_t bytes, Pool *pool, void *stream) {
    int is_captured;
    Result wrong = note(stream, &is_captured);
    if (wrong) return wrong;
    if (live + bytes > limit) return OUT_OF_MEMORY;
    Block *block = malloc(sizeof *block);
    *address = (Pointer)aligned_alloc(256, (bytes + 255) / 256 * 256);
    *block = (Block){*address, bytes, pool, blocks};
    for (size_t word = 0; word < bytes / 8; word++) /* read as floats NaN, as a flag: no error */
        ((int64_t *)*address)[word] = INT64_MAX;
    blocks = block;
    live += bytes;
    pool->used += bytes;
    if (pool->used > pool->most) pool->most = pool->used;
    return OK;
}
Result cuMemFreeAsync(Pointer address, void *stream) {
    for (Block **at = &blocks; *at; at = &(*at)->next) {
        Block *block = *at;
        if (block->address != address) continue;
        *at = block->next;
        live -= block->bytes;
        block->pool->used -= block->bytes;
        memset((void *)address, 0xFF, block->bytes); /* NaN, for who reads it nevertheless */
        free((void *)address);
        free(block);
        return OK;
    }
    return INVALID_VALUE;
}
Result cuMemAllocHost_v2(void **address, size_t bytes) { *address = malloc(bytes); return OK; }
Result cuMemFreeHost(void *address) { free(address); return OK; }
Result cuMemGetInfo_v2(size_t *unused, size_t *total) {
    *unused = (size_t)40 << 30;
    *total = (size_t)80 << 30;
    return current ? OK : INVALID_CONTEXT;
}
static Result move(void *to, const void *from, size_t bytes, void *stream) {
    int is_captured;
    Result wrong = note(stream, &is_captured);
    if (!wrong && !is_captured) memmove(to, from, bytes);
    return wrong;
}
Result cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, void *stream) {
    return move((void *)to, from, bytes, stream);
}
Result cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, void *stream) {
    return move(to, (void *)from, bytes, stream);
}
Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void *stream) {
    return move((void *)to, (void *)from, bytes, stream);
}

/* What kind of memory an address is in: the GPU's (2) or the host's (1). */
static Result describe(void *value, int attribute, Pointer address) {
    int is_ours = 0;
    for (Block *block = blocks; block; block = block->next)
        is_ours |= address >= block->address && address < block->address + block->bytes;
    switch (attribute) {
    case 2: *(unsigned *)value = is_ours ? 2 : 1; break;
    case 3: case 4: *(Pointer *)value = address; break;
    case 8: *(unsigned *)value = 0; break; /* not managed */
    case 9: *(int *)value = 0; break;      /* the GPU's number */
    default: return INVALID_VALUE;
    }
    return OK;
}
Result cuPointerGetAttribute(void *value, int attribute, Pointer address) {
    return describe(value, attribute, address);
}
Result cuPointerGetAttributes(unsigned count, int *attributes, void **values, Pointer address) {
    Result result = OK;
    for (unsigned k = 0; k < count && !result; k++)
        result = describe(values[k], attributes[k], address);
    return result;
}

/* -------------------------------------------------------------------------- streams and events */

Result cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) {
    *stream = malloc(1);
    return OK;
}
Result cuStreamDestroy_v2(void *stream) { free(stream); return OK; }
Result cuStreamSynchronize(void *stream) {
    int is_captured;
    waits++;
    return note(stream, &is_captured);
}
Result cuStreamGetCtx(void *stream, void **found) { *found = &context; return OK; }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { attached++; return OK; }
Result cuEventCreate(void **event, unsigned flags) { *event = malloc(1); return OK; }
Result cuEventDestroy_v2(void *event) { free(event); return OK; }
Result cuEventRecord(void *event, void *stream) { return OK; }
Result cuEventSynchronize(void *event) { waits++; return OK; }
Result cuEventQuery(void *event) { return OK; }

/* --------------------------------------------------------------------------------------- code */

typedef struct { unsigned grid[3], block[3], shared; void *stream, *attributes; unsigned count; } Config;

Result cuLibraryLoadData(void **library, const void *code, void *a, void *b, unsigned c, void *d,
                         void *e, unsigned f) {
    *library = malloc(1);
    return OK;
}
Result cuLibraryUnload(void *library) { return OK; }
Result cuLibraryGetKernel(char **kernel, void *library, const char *name) {
    *kernel = strdup(name);
    return OK;
}
Result cuKernelGetAttribute(int *value, int attribute, const char *kernel, int device) {
    *value = 1;
    return OK;
}
Result cuLaunchKernelEx(const Config *config, const char *kernel, void **arguments, void **extra) {
    int is_captured;
    Result wrong = note(config->stream, &is_captured);
    if (wrong) return wrong;
    if (is_captured) graph->launches++;
    else launches++;
    if (on_launch) on_launch(kernel, arguments);
    return OK;
}
