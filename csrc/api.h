/* The operations, one line each. Every function returns 0, or 1 with the reason in hsb_last_error(). */
#ifndef HSB_API_H
#define HSB_API_H

#include "params.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HSB_EXPORT __attribute__((visibility("default")))

/* Both libraries. */
HSB_EXPORT const char *hsb_abi(void);                 /* SHA-256 of the params.h that this library was built from */
HSB_EXPORT int64_t hsb_struct_size(const char *name); /* sizeof, or -1 for a name that is not in params.h */
HSB_EXPORT const char *hsb_last_error(void);          /* of this thread: "file:line: condition: message" */

/* libhsbench_cpu. A *_workspace function gives the bytes that its operation wants, -1 on error. */
HSB_EXPORT int32_t hsb_cpu_best_isa(void); /* an hsb_isa */
HSB_EXPORT int hsb_cpu_decode(const hsb_decode_params *p);
HSB_EXPORT int64_t hsb_cpu_decode_workspace(const hsb_decode_params *p);
HSB_EXPORT int hsb_cpu_decode_bitmap(const hsb_decode_params *p);
HSB_EXPORT int64_t hsb_cpu_decode_bitmap_workspace(const hsb_decode_params *p);
HSB_EXPORT int hsb_cpu_prefill(const hsb_prefill_params *p);
HSB_EXPORT int64_t hsb_cpu_prefill_workspace(const hsb_prefill_params *p);
HSB_EXPORT int hsb_cpu_compress(const hsb_compress_params *p);
HSB_EXPORT int64_t hsb_cpu_compress_workspace(const hsb_compress_params *p);
HSB_EXPORT int hsb_cpu_append(const hsb_append_params *p);
HSB_EXPORT int hsb_cpu_mean(const hsb_mean_params *p);
HSB_EXPORT int hsb_cpu_token_norms(const hsb_token_norms_params *p);
HSB_EXPORT int hsb_cpu_compress_bitmap(const hsb_compress_bitmap_params *p);
HSB_EXPORT int64_t hsb_cpu_compress_bitmap_workspace(const hsb_compress_bitmap_params *p);
HSB_EXPORT int hsb_cpu_probe(const hsb_probe_params *p);

/* libhsbench_cuda. Pointers are device pointers of the current device; a workspace is zeroed by the caller once, before
 * its first call, and then belongs to one shape; calls return once their work is on p->stream. */
HSB_EXPORT const char *hsb_cuda_architectures(void); /* as CMake names them: "80-real 90a-real 90-virtual" */
HSB_EXPORT int hsb_cuda_decode(const hsb_decode_params *p);
HSB_EXPORT int64_t hsb_cuda_decode_workspace(const hsb_decode_params *p);
HSB_EXPORT int hsb_cuda_decode_bitmap(const hsb_decode_params *p);
HSB_EXPORT int64_t hsb_cuda_decode_bitmap_workspace(const hsb_decode_params *p);
HSB_EXPORT int hsb_cuda_prefill(const hsb_prefill_params *p);
HSB_EXPORT int64_t hsb_cuda_prefill_workspace(const hsb_prefill_params *p);
HSB_EXPORT int hsb_cuda_compress(const hsb_compress_params *p);
HSB_EXPORT int64_t hsb_cuda_compress_workspace(const hsb_compress_params *p);
HSB_EXPORT int hsb_cuda_append(const hsb_append_params *p);
HSB_EXPORT int64_t hsb_cuda_append_workspace(const hsb_append_params *p);
HSB_EXPORT int hsb_cuda_combine(const hsb_combine_params *p);
HSB_EXPORT int hsb_cuda_token_norms(const hsb_token_norms_params *p);
HSB_EXPORT int hsb_cuda_compress_bitmap(const hsb_compress_bitmap_params *p);
HSB_EXPORT int64_t hsb_cuda_compress_bitmap_workspace(const hsb_compress_bitmap_params *p);
HSB_EXPORT int hsb_cuda_probe(const hsb_probe_params *p);

#ifdef __cplusplus
}
#endif

#endif
