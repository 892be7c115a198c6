/* One struct per operation: the whole contract between hsbench's Python side and its compiled libraries.
 *
 * Plain C, and the only place where a field or a constant is declared: hsbench/kernels/library.py reads this file and builds
 * its ctypes structures and constants from it, so keep to one declaration per line, fixed-width types, enumerators with
 * plain values and no macros. The build stamps each
 * library with this file's SHA-256 (hsb_abi) and exports every struct's size (hsb_struct_size); a library that
 * does not match is refused at load.
 *
 * Shapes are in elements, outermost first. Tensors are contiguous. `dtype` is an hsb_dtype and holds for every
 * `void *` of 16-bit elements. Fields that only one kind of device reads say so.
 */
#ifndef HSB_PARAMS_H
#define HSB_PARAMS_H

#include <stdint.h>

/* Comments stand in a column, some over several lines. */
/* clang-format off */

enum hsb_dtype { HSB_FP16 = 0, HSB_BF16 = 1 };

/* How a block of 64 tokens is stored, and how many ways there are. WIDE: in fp16, in a cache whose other pages hold
 * narrower elements; its values are in units of their channels' scales, as those of the other pages are. */
enum hsb_block_kind { HSB_DENSE = 0, HSB_SPARSE_2_4 = 1, HSB_WIDE = 2 };
enum hsb_block_kinds { HSB_BLOCK_KINDS = 3 };

/* The elements that the values of K or V's pages are: of 16 bits, the tensor's own (hsb_dtype), or e4m3 of 8 bits (exponents
 * of 4, fractions of 3; 448 at most), or int4, both of which a scale per channel belongs to; pages of int4 have
 * scales of their own besides, in units of that one. Wide pages are fp16 among the latter two. */
enum hsb_stored { HSB_STORED_16 = 0, HSB_STORED_FP8 = 1, HSB_STORED_INT4 = 2 };

/* A block map's entry is slot << HSB_KIND_BITS | kind: slots count within the pool of that kind. There is room for 8
 * kinds and for 2^28 blocks of each, all batches and kv heads together: 17 billion tokens of one head. */
enum hsb_map_entry { HSB_KIND_BITS = 3 };

/* Which tensor a page belongs to: K contracts along head_dim, V along tokens. */
enum hsb_operand { HSB_KEY = 0, HSB_VALUE = 1 };

/* Along which dimension of V its groups of 4 run, of which 2:4 keeps 2: along tokens, which V contracts, or along head_dim.
 * K's run along head_dim, which K contracts, and have AXIS_TOKENS's 0. */
enum hsb_axis { HSB_AXIS_TOKENS = 0, HSB_AXIS_HEAD_DIM = 1 };

/* How the channels of K stand in its pages, and so how q is read: place 4 g + i of MIRROR holds channel g, h - 1 - g,
 * g + h, d - 1 - g for i = 0, 1, 2, 3, with h = d / 2 (hsbench/cache/fit.py). */
enum hsb_order { HSB_ORDER_ADJACENT = 0, HSB_ORDER_MIRROR = 1 };

/* Instruction set of a CPU kernel; AUTO takes the best that the machine has. */
enum hsb_isa { HSB_ISA_AUTO = 0, HSB_ISA_PORTABLE = 1, HSB_ISA_AVX2 = 2, HSB_ISA_AVX512 = 3, HSB_ISA_AVX512_BF16 = 4 };

/* Which CUDA prefill kernel; AUTO takes the fastest that the GPU can run. */
enum hsb_path { HSB_PATH_AUTO = 0, HSB_PATH_SM80 = 1, HSB_PATH_SM90 = 2 };

/* How the CUDA probe reads: by loads into registers, or as decode reads its pages, by copies into a ring of stages in
 * shared memory. AUTO is LOADS, the only way to copy. */
enum hsb_probe_way { HSB_PROBE_AUTO = 0, HSB_PROBE_LOADS = 1, HSB_PROBE_RING = 2 };

/* K or V as blocks of 64 tokens, each of an hsb_block_kind. A page's bytes are the device layout's own
 * (hsbench/cache/). */
typedef struct hsb_pages {
    const void *dense;          /* [dense pages, dense_page_bytes] */
    const void *sparse;         /* [2:4 pages, sparse_page_bytes]: kept values and their metadata */
    const void *wide;           /* [wide pages, wide_page_bytes]: fp16. NULL for elements of 16 bits */
    const int32_t *map;         /* [batch, kv_heads, stored blocks]: hsb_map_entry. CUDA: may be NULL where all pools
                                 * but one are NULL and that one has the blocks in order */
    int64_t dense_page_bytes;
    int64_t sparse_page_bytes;
    int64_t wide_page_bytes;
    int32_t stored;             /* an hsb_stored */
    int32_t wide_pages;         /* that `wide` has room for: their slots lie below it */
    const float *scale;         /* [batch, kv_heads, head_dim], in the order of the tensor's own channels: what the stored
                                 * values of a channel are multiplied by, powers of 2 from 2^-120 to 2^119. NULL for
                                 * elements of 16 bits */
    int32_t value_axis;         /* V: an hsb_axis. Pages of all kinds are made for it. Decode only: prefill takes none but
                                 * HSB_AXIS_TOKENS */
    int32_t reserved;
} hsb_pages;

/* K or V with per-token unstructured sparsity: MUSTAFAR's bitmap format. */
typedef struct hsb_bitmaps {
    const uint64_t *bitmap;     /* [batch, kv_heads, seq, head_dim / 64]: bit i set where element i is kept */
    const uint32_t *offset;     /* [batch, kv_heads, seq, head_dim / 64]: first kept value, in units of 8 values */
    const void *values;         /* [sum over bitmaps of popcount rounded up to 8] */
} hsb_bitmaps;

/* out = softmax(q K^T * scale) V for one query per head; lse is the natural log of the sum of exponentials. The query
 * sees all that is stored, in whatever order: where blocks are evicted, seq counts the tokens of the others. Of a
 * cache that grows, seq is the capacity, and what is stored of a sequence is as long as `lengths` says. Where that is
 * nothing, out is 0 and lse -infinity. */
typedef struct hsb_decode_params {
    int32_t batch;
    int32_t q_heads;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
    int64_t seq;
    int32_t dtype;
    int32_t threads;            /* CPU: threads to use, the caller's included */
    int32_t isa;                /* CPU: an hsb_isa */
    float scale;
    int32_t key_order;          /* an hsb_order; pages only */
    int32_t alike;              /* CUDA, read where lengths is not NULL: not 0 where sequences are about as long as one
                                 * another. Only time depends on it */
    const void *q;              /* [batch, q_heads, head_dim] */
    void *out;                  /* [batch, q_heads, head_dim] */
    float *lse;                 /* [batch, q_heads] */
    void *workspace;            /* hsb_*_decode_workspace() bytes, 64-byte aligned */
    void *stream;               /* CUDA: the caller's stream */
    hsb_pages k;                /* hsb_*_decode */
    hsb_pages v;
    const float *key_shift;     /* [batch, kv_heads, head_dim], in the order of q's channels: what was taken from every
                                 * token of K, and lse gets back, scale * q . key_shift; NULL: nothing. Pages only */
    const float *value_shift;   /* [batch, kv_heads, head_dim]: likewise of V; out gets it back. NULL: nothing */
    const int32_t *lengths;     /* [batch]: tokens of each sequence, 0 to seq; maps have entries for seq. NULL: all have
                                 * seq. Pages only; CUDA: device memory, read when the kernel runs */
    hsb_bitmaps k_bitmap;       /* hsb_*_decode_bitmap */
    hsb_bitmaps v_bitmap;
} hsb_decode_params;

/* Causal attention of q_len queries over seq tokens; query i sees tokens 0 .. seq - q_len + i, less those of evicted
 * blocks, which are stored nowhere. Where that leaves a query nothing, its out is 0 and its lse -infinity. Of a cache
 * that grows, seq is the capacity, each sequence is as long as `lengths` says, and has as many of the queries, the
 * first ones, as `q_lengths` says; the others' out is 0 and their lse -infinity. */
typedef struct hsb_prefill_params {
    int32_t batch;
    int32_t q_heads;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
    int64_t q_len;
    int64_t seq;
    int32_t dtype;
    int32_t threads;            /* CPU */
    int32_t isa;                /* CPU: an hsb_isa */
    float scale;
    int32_t path;               /* CUDA: an hsb_path */
    int32_t key_order;          /* an hsb_order */
    const void *q;              /* [batch, q_heads, q_len, head_dim] */
    void *out;                  /* [batch, q_heads, q_len, head_dim] */
    float *lse;                 /* [batch, q_heads, q_len] */
    void *workspace;            /* hsb_*_prefill_workspace() bytes, 64-byte aligned */
    void *stream;               /* CUDA */
    hsb_pages k;
    hsb_pages v;
    const float *key_shift;     /* [batch, kv_heads, head_dim], in the order of q's channels: what was taken from every
                                 * token of K, and lse gets back, scale * q . key_shift; NULL: nothing */
    const float *value_shift;   /* [batch, kv_heads, head_dim]: likewise of V; out gets it back. NULL: nothing */
    const int32_t *position;    /* [batch, kv_heads, stored_blocks]: which block of the sequence each stored one is,
                                 * ascending; K and V have the same. NULL: none is evicted */
    int64_t stored_blocks;      /* of each (batch, kv head), 1 or more; read where position is not NULL */
    const int32_t *lengths;     /* [batch]: as of hsb_decode_params, with position NULL */
    const int32_t *q_lengths;   /* [batch]: 0 to the lesser of q_len and the sequence's length; NULL: q_len. Read where
                                 * lengths is not NULL */
} hsb_prefill_params;

/* Prune, choose blocks and pack one of K and V into pages. The number of 2:4 blocks per (batch, kv head) is known
 * before (hsbench/cache/prune.py), so the caller sizes both pools. */
typedef struct hsb_compress_params {
    int32_t batch;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
    int32_t operand;            /* an hsb_operand */
    int64_t seq;
    int64_t first_eligible;     /* blocks [first_eligible, last_eligible) may become 2:4 */
    int64_t last_eligible;
    int64_t sparse_per_head;    /* how many of them do, lowest loss first */
    int32_t dtype;
    int32_t threads;            /* CPU */
    int32_t isa;                /* CPU: an hsb_isa */
    int32_t order;              /* an hsb_order: of K's channels in its pages; adjacent for V */
    const void *x;              /* [batch, kv_heads, seq, head_dim] */
    void *dense;                /* [batch * kv_heads * (blocks - sparse_per_head - wide ones), dense_page_bytes] */
    void *sparse;               /* [batch * kv_heads * sparse_per_head, sparse_page_bytes] */
    void *wide;                 /* [batch * kv_heads * wide ones, wide_page_bytes]: of narrow elements those blocks that
                                 * are not eligible, else none, and NULL */
    int32_t *map;               /* [batch, kv_heads, blocks] */
    int64_t *non_finite;        /* [1]: flat index of the first NaN or infinity, -1 if there is none. CUDA: it is -1 before
                                 * the call, and only written where there is one */
    void *workspace;            /* hsb_*_compress_workspace() bytes, 64-byte aligned */
    void *stream;               /* CUDA */
    const float *shift;         /* [batch, kv_heads, head_dim], in the order of x's channels: taken from every token
                                 * before anything else, rounded once, saturating. NULL: nothing */
    const void *weights;        /* in x's dtype: what stays is chosen by what is stored times these, rounded, which
                                 * must be finite. K: [batch, kv_heads, head_dim], in the order of x's channels;
                                 * V: [batch, kv_heads, seq]. NULL: by what is stored */
    const float *scale;         /* [batch, kv_heads, head_dim], in the order of x's channels: as of hsb_pages; pages hold
                                 * what is stored, pruned and folded, in units of it. Powers of 2 whose inverses are
                                 * numbers of x's type. NULL for elements of 16 bits */
    float fold;                 /* V: each of the two that a 2:4 group keeps gets half of this share of the sum of
                                 * the two that it drops. 0: nothing */
    int32_t stored;             /* an hsb_stored */
    int32_t value_axis;         /* an hsb_axis: of V's groups, which are neither weighed nor folded along head_dim */
    int32_t map_blocks;         /* entries of the map that each (batch, kv head) has, of which the first are written; 0: the
                                 * blocks of seq */
    int32_t dense_pages;        /* likewise pages of each pool; read where map_blocks is not 0 */
    int32_t sparse_pages;
    int32_t wide_pages;
    int32_t reserved;
} hsb_compress_params;

/* K or V of a cache that grows, to append to; hsb_pages is what it is to read. A block is open until it is judged:
 * dense, or wide in a cache of narrow elements, zeros in place of tokens that are still to come. A judged block becomes
 * 2:4, or it stays as it is, or, of narrow elements, becomes a dense page of these: the same that compress makes of what
 * the open page holds, in k's dtype, with no shift. Unless it stays, its open page is then free.
 *
 * Blocks that touch the first `sink` tokens are never judged. Others are, in order: (1) where ratio is 0 none becomes
 * 2:4, where it is 1 all do; (2) of n judged before, s of them 2:4, the next one must stay if s > ratio * (n + 1), must
 * become 2:4 if s + 1 < ratio * (n + 1), and else becomes 2:4 if fewer than ceil(ratio * (n + 1) - 1e-9) of the n
 * losses are at most its own. Its loss is the sum, in fp64 by halves, of the magnitudes that 2:4 would drop of the
 * scores: of a block [64, head_dim] whose other elements are zero, element i < h gets element i + h added, for h = 32 *
 * head_dim, and so on down to 1. */
typedef struct hsb_growing {
    void *dense;                /* [batch * kv_heads * dense_pages, page bytes]: a head's own are successive */
    void *sparse;               /* [batch * kv_heads * sparse_pages, page bytes] */
    void *wide;                 /* [batch * kv_heads * wide_pages, page bytes]; NULL for elements of 16 bits */
    int32_t *map;               /* [batch, kv_heads, blocks of seq] */
    int32_t *free;              /* [batch, kv_heads, pages of the open kind]: a stack of their numbers within the head's
                                 * own: that at the number of taken ones is taken next, and a freed one is put there */
    int32_t *state;             /* [batch, kv_heads, 4]: taken pages of the open kind, of 2:4, of narrow dense ones, which
                                 * are taken in order; and how many blocks were judged */
    double *losses;             /* [batch, kv_heads, blocks of seq]: of judged blocks, in order. NULL where ratio is 0 or
                                 * 1, where none is needed */
    const float *shift;         /* as of hsb_compress_params */
    const void *weights;        /* likewise, K alone */
    const float *scale;         /* likewise */
    double ratio;               /* share of judged blocks that become 2:4, 0 to 1 */
    float fold;                 /* likewise */
    int32_t dense_pages;        /* of each (batch, kv head); enough for what seq tokens take */
    int32_t sparse_pages;
    int32_t wide_pages;
    int32_t stored;             /* an hsb_stored */
    int32_t order;              /* an hsb_order: of K's channels; adjacent for V */
    int32_t value_axis;         /* an hsb_axis */
    int32_t reserved;
} hsb_growing;

/* Append tokens to each sequence, then judge the blocks that have left the window: those that end `local` tokens, and
 * chunk - 1 or all but one of the appended tokens, whichever is less, before the new end. So all that the first of a
 * chunk's queries has in its window is open when prefill comes. */
typedef struct hsb_append_params {
    int32_t batch;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
    int32_t dtype;
    int64_t seq;                /* capacity, in tokens */
    int64_t tokens;             /* of k and v, of each sequence */
    int64_t sink;
    int64_t local;
    int64_t chunk;              /* 1 or more */
    int32_t threads;            /* CPU */
    int32_t isa;                /* CPU: an hsb_isa */
    const void *k;              /* [batch, kv_heads, tokens, head_dim] */
    const void *v;
    const int32_t *counts;      /* [batch]: how many of them, the first ones, are appended, 0 to tokens; NULL: all */
    int32_t *lengths;           /* [batch]: tokens of each sequence, before and then after. CUDA: device memory */
    int64_t *non_finite;        /* [2]: of K, of V: flat index in k or v of a NaN or infinity that was appended; only
                                 * written where there is one and it is -1 */
    int32_t *overflow;          /* [batch]: set to 1 where a sequence would be longer than seq, of which then nothing is
                                 * written; never to 0 */
    void *workspace;            /* CUDA: hsb_cuda_append_workspace() bytes, whatever `tokens`, 64-byte aligned */
    void *stream;               /* CUDA */
    hsb_growing key;
    hsb_growing value;
} hsb_append_params;

/* The mean of some successive tokens of K or V, which a pruner takes off: sums in fp64. */
typedef struct hsb_mean_params {
    int32_t batch;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
    int32_t dtype;
    int64_t seq;
    int64_t first_token;        /* of first_token <= i < last_token, at least one */
    int64_t last_token;
    int32_t threads;            /* CPU */
    int32_t isa;                /* CPU: an hsb_isa */
    const void *x;              /* [batch, kv_heads, seq, head_dim] */
    float *mean;                /* [batch, kv_heads, head_dim] */
} hsb_mean_params;

/* What a pruner weighs the tokens of V by: of each as it is stored, the sum of its channels' squares and its largest
 * magnitude. The sum is in fp64, where a square is exact, by halves: channel c < h gets channel c + h added, for h =
 * head_dim / 2, and so on down to 1. */
typedef struct hsb_token_norms_params {
    int32_t batch;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
    int32_t dtype;
    int64_t seq;
    int32_t threads;            /* CPU */
    int32_t isa;                /* CPU: an hsb_isa */
    const void *x;              /* [batch, kv_heads, seq, head_dim] */
    const float *shift;         /* as of hsb_compress_params, or NULL */
    double *squares;            /* [batch, kv_heads, seq] */
    void *largest;              /* [batch, kv_heads, seq], in x's dtype */
    void *stream;               /* CUDA */
} hsb_token_norms_params;

/* Prune one of K and V per token to the `keep` largest magnitudes and pack it as bitmaps. Called twice: with
 * values NULL it fills bitmap and offset and reports total; then the caller allocates values and calls again. */
typedef struct hsb_compress_bitmap_params {
    int32_t batch;
    int32_t kv_heads;
    int32_t head_dim;           /* 64 or 128 */
    int32_t keep;               /* elements kept per token */
    int64_t seq;
    int32_t dtype;
    int32_t threads;            /* CPU */
    int32_t isa;                /* CPU: an hsb_isa */
    int32_t reserved;
    const void *x;              /* [batch, kv_heads, seq, head_dim] */
    uint64_t *bitmap;           /* [batch, kv_heads, seq, head_dim / 64] */
    uint32_t *offset;           /* [batch, kv_heads, seq, head_dim / 64] */
    void *values;               /* [total], or NULL in the first call */
    int64_t *total;             /* [1]: values in all, padding included */
    int64_t *non_finite;        /* [1]: flat index of the first NaN or infinity, -1 if there is none */
    void *workspace;            /* CUDA: scratch */
    void *stream;               /* CUDA */
} hsb_compress_bitmap_params;

/* Attention over parts of a sequence to attention over all of it: lse is the log of the sum of exp(lse of a part), out the sum
 * of exp(lse of a part - lse) times its out, from part 0 on in fp32, then rounded. A part whose lse is -infinity has no
 * tokens; where all are, lse is -infinity and out 0. CUDA alone. */
typedef struct hsb_combine_params {
    int64_t rows;               /* queries: batch x q_heads x q_len */
    int32_t head_dim;           /* 64 or 128 */
    int32_t dtype;
    int32_t parts;
    int32_t reserved;
    int64_t part_bytes;         /* from what is a part's to what is the next's, in outs as in lses; a multiple of 4 */
    const void *outs;           /* of part 0: [rows, head_dim] */
    const float *lses;          /* of part 0: [rows], natural log */
    void *out;                  /* [rows, head_dim] */
    float *lse;                 /* [rows] */
    void *stream;
} hsb_combine_params;

/* Move `bytes` through memory once, to learn the ceiling: read src, and write dst where it is not NULL. */
typedef struct hsb_probe_params {
    int64_t bytes;              /* multiple of 4096 */
    int32_t threads;            /* CPU */
    int32_t isa;                /* CPU: an hsb_isa */
    const void *src;            /* [bytes], 64-byte aligned */
    void *dst;                  /* [bytes], or NULL to read only */
    uint64_t *checksum;         /* [1]: a value that depends on every byte read, so the reads cannot be dropped */
    void *stream;               /* CUDA */
    int32_t way;                /* CUDA: an hsb_probe_way */
    int32_t reserved;
} hsb_probe_params;

#endif
