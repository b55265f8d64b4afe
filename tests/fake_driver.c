/* What PID 1 asks of NVIDIA's libraries, answered from a list: the devices of tests on machines that have none.
   Built without a C library: cc -shared -fPIC -nostdlib -DUUIDS='"GPU-…"' */

#ifndef CUDA
#define CUDA 1
#endif

static const char *const uuids[] = {UUIDS};
#define COUNT ((unsigned)(sizeof uuids / sizeof *uuids))

int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { *count = 0; return 3; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, const char **device) {
    *device = uuids[index];
    return index < COUNT ? 0 : 2;
}

int nvmlDeviceGetUUID(const char *device, char *text, unsigned length) {
    unsigned at = 0;
    while (at + 1 < length && device[at]) { text[at] = device[at]; at++; }
    text[at] = 0;
    return 0;
}

int cuInit(unsigned flags) { return CUDA ? 0 : 100; } /* CUDA_ERROR_NO_DEVICE */
int cuDeviceGetCount(int *count) { *count = (int)COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }

static int digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

int cuDeviceGetUuid_v2(unsigned char *raw, int device) {
    const char *text = uuids[device] + 4; /* after "GPU-" */
    for (int at = 0; at < 16; at++) {
        if (*text == '-') text++;
        raw[at] = (unsigned char)(16 * digit(text[0]) + digit(text[1]));
        text += 2;
    }
    return 0;
}
