// The bytes of pages whose values are int4, of both kinds; what rows and cols are is in page.cuh. Only decode reads them, so
// they are made for one warp's products alone: all lies lane by lane, in the order of mma's registers (int4_mma.cuh), and a
// lane has what it needs by loads of 16 bytes, side by side with its neighbours'.
//
//   scales     fp16 [sets][cols / 32 steps][4 lanes of a quad][4 registers of B][2]: K's of the channels, one set; V's of
//              the tokens, a set for each 64 channels. Of V in groups along head_dim [sets][64 / 8 steps][2 halves of a
//              quad][4 registers]: a register's two cols have one
//   values     u32 words of 8 nibbles, [words / 4][32 lanes][4]
//   metadata   2:4: u32 [strips x pairs / 4][3][32 lanes], a pattern of six in 3 bits for each group
//
// Rows and the order of the contraction are those of wide pages (wide.cuh), so that both take the same queries and
// probabilities: K's tokens are dealt over the halves of each strip of 16. With i = lane / 4, t = lane % 4 and, within 16 cols
// of a dense page, c = 8 (t / 2) + 2 (t % 2), the four registers of a word are
//
//             a0                     a1             a2                     a3
//   dense     row i, cols c, c + 1   row i + 8      row i, cols c + 4, ..  row i + 8      word (pair, strip, 16 of 64 cols)
//   2:4       row i, group 2 t       row i + 8      row i, group 2 t + 1   row i + 8      word (pair, strip, step of 32 cols)
//
// the words of a page being numbered in that order, a pair being 64 cols. A nibble s mmm is (m + 1/2) times its scale,
// negative where s is set. In a word its magnitude and its sign stand in different nibbles: of half h of register r in nibbles
// r + 4 h + 1 and r + 4 h + 3, modulo 8. So a rotation and a mask make two fp16 of a word, with the sign on top and m in bits
// 4 to 6.
//
// A word of mma's metadata has 8 groups, group (g, row half u) in its nibble 4 u + g being group 2 g + t % 2 of the step t / 2 of
// the pair. Of four such words, in the order (pair, strip), three are stored: their codes in bits 0 to 2 of nibbles, of which
// nibble 4 (n % 2) + n / 2 is for the metadata's nibble n; bit 3 of nibble k of word w is bit w of the fourth one's code k.
#pragma once

#include "cuda/page.cuh"

namespace hsb::cuda {

HSB_HOST_DEVICE constexpr int int4_scale_bytes(int head_dim) { return head_dim * 2; }
HSB_HOST_DEVICE constexpr int int4_metadata_bytes(int head_dim) { return kBlock * head_dim / 4 * 3 / 8; }
HSB_HOST_DEVICE constexpr int int4_dense_page_bytes(int head_dim) {
    return int4_scale_bytes(head_dim) + kBlock * head_dim / 2;
}
HSB_HOST_DEVICE constexpr int int4_sparse_page_bytes(int head_dim) {
    return int4_scale_bytes(head_dim) + kBlock * head_dim / 4 + int4_metadata_bytes(head_dim);
}
static_assert(int4_dense_page_bytes(128) == 4352 && int4_sparse_page_bytes(128) == 3072, "3.8x and 5.3x");
static_assert(int4_dense_page_bytes(64) % 128 == 0 && int4_sparse_page_bytes(64) % 128 == 0,
              "pages of a pool keep the alignment that bulk copies need");

// Which scales the rows of a page have.
template <class Shape>
struct Int4Scales {
    // V in groups along head_dim: a strip has 64 channels, and a scale is of four neighbouring cols.
    static constexpr bool kIsOfGroups = Shape::kCols == kBlock * kGroup;
    static constexpr int kStripsOfSet = kIsOfGroups ? 1 : 4;
    static constexpr int kSets = Shape::kStrips / kStripsOfSet;
    static constexpr int kSteps = Shape::kCols / kStepCols;
    static constexpr int kLaneBytes = kIsOfGroups ? 4 : kChunkBytes;  // of a lane of a quad, in a step
    static constexpr int kBytes = kSets * kSteps * 4 * kLaneBytes;
    // Whether products take what rounding q times a scale took as well: scores would be off by 2^-12 of their terms, as if q
    // were rounded twice. A rounding of p stays within an output's own. (64 x 64 may be either.)
    static constexpr bool kTakesRest = Shape::kRows == kBlock;

    // Of a step: a lane's 16 bytes of pairs; or, of groups, the 8 bytes that it shares with its neighbour.
    HSB_HOST_DEVICE static constexpr int at(int set, int step, int t) {
        return (set * kSteps + step) * 4 * kLaneBytes + (kIsOfGroups ? t / 2 * 8 : t * kChunkBytes);
    }
};

// Where the 16 bytes of a lane lie that hold words 4 `chunk` and on.
template <class Shape>
HSB_HOST_DEVICE constexpr int int4_words(int chunk, int lane) {
    return Int4Scales<Shape>::kBytes + (chunk * 32 + lane) * kChunkBytes;
}
// Where one of the three words of codes of four words of metadata lies.
template <class Shape>
HSB_HOST_DEVICE constexpr int int4_codes(int four, int word, int lane) {
    return Int4Scales<Shape>::kBytes + Shape::kRows * Shape::kCols / 4 + ((four * 3 + word) * 32 + lane) * 4;
}

}  // namespace hsb::cuda
