// What numbered records held at one instant, kept for those that change before a snapshot has come
// by: it takes the numbers in blocks, from the first on, and an image lives until its block.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "memory.hpp"

namespace freshrank {

class Preimages {
  public:
    // Of the records 0 .. n_records - 1, in blocks of a power of two of them.
    Preimages(std::uint32_t n_records, std::uint32_t image_bytes, std::uint32_t block_records)
        : image_bytes_(image_bytes),
          block_bits_(static_cast<std::uint32_t>(std::countr_zero(block_records))),
          piece_bytes_(sizeof no_piece + piece_images * (sizeof no_piece + image_bytes)) {
        cover(n_records);
    }

    // Of as many records as there are now; before the first is kept.
    void cover(std::uint32_t n_records) {
        if (n_words(n_records) > is_kept_.size()) {
            is_kept_ = AlignedArray<std::uint64_t>(n_words(n_records));
        }
        blocks_.resize((std::uint64_t{n_records} + (1U << block_bits_) - 1) >> block_bits_);
        n_records_ = n_records;
        // Each block may end with a piece that is not full.
        most_pieces_ = blocks_.size() + n_records / piece_images + 1;
        if (slabs_.empty()) {
            slab_bytes_ =
                std::min(std::max(huge_page_bytes, piece_bytes_), most_pieces_ * piece_bytes_);
            slab_pieces_ = slab_bytes_ / piece_bytes_;
        }
    }

    // Record n is about to change.
    void keep(std::uint32_t n, const void* record) {
        if (std::uint8_t* image = place_for(n)) {
            std::memcpy(image, record, image_bytes_);
        }
    }
    // Whether somebody needs what record n holds: it is of the instant, its block is not taken, and
    // it is not kept yet.
    bool is_wanted(std::uint32_t n) const {
        return n < n_records_ && n >= first() && (is_kept_.data()[n / 64] >> n % 64 & 1) == 0;
    }
    // Where to write what record n holds, before it changes; null where nobody needs it.
    std::uint8_t* place_for(std::uint32_t n) {
        if (!is_wanted(n)) {
            return nullptr;
        }
        Block& block = blocks_[n >> block_bits_];
        if (block.n_images % piece_images == 0) {
            const std::uint32_t piece = new_piece();
            std::memcpy(at(piece), &block.last_piece, sizeof piece);
            block.last_piece = piece;
        }
        std::uint8_t* image = image_of(block.last_piece, block.n_images++ % piece_images);
        is_kept_.data()[n / 64] |= std::uint64_t{1} << n % 64;
        std::memcpy(image, &n, sizeof n);
        return image + sizeof n;
    }

    // The block to take next: its numbers are first() .. end() - 1, none when all are taken.
    std::uint32_t first() const { return bound(n_taken_); }
    std::uint32_t end() const { return bound(n_taken_ + 1); }
    bool is_done() const { return n_taken_ == blocks_.size(); }

    // visit(n, image) for every number of the block, image null for those that have not changed;
    // the images' memory then serves others.
    template <class Visit>
    void take(Visit&& visit) {
        const std::uint32_t from = first();
        std::vector<const std::uint8_t*> images(end() - from);
        const Block block = std::exchange(blocks_[n_taken_], Block{});
        n_free_ += (block.n_images + piece_images - 1) / piece_images;
        std::uint32_t n_left = block.n_images;
        for (std::uint32_t piece = block.last_piece; n_left > 0;) {
            do {
                const std::uint8_t* image = image_of(piece, --n_left % piece_images);
                std::uint32_t n = 0;
                std::memcpy(&n, image, sizeof n);
                images[n - from] = image + sizeof n;
            } while (n_left % piece_images != 0);
            std::uint32_t before = no_piece;
            std::memcpy(&before, at(piece), sizeof before);
            if (n_left == 0) {
                // The block's pieces, from the last to the first, go before the free ones.
                std::memcpy(at(piece), &free_piece_, sizeof free_piece_);
                free_piece_ = block.last_piece;
            }
            piece = before;
        }
        for (std::uint32_t i = 0; i < images.size(); ++i) {
            visit(from + i, images[i]);
        }
        ++n_taken_;
    }

    // Whoever begins or takes blocks provides memory, so that whoever changes records need not wait
    // for the system's pages: while lacks(n), add(new_slab()).
    using Slab = AlignedArray<std::uint8_t>;
    bool lacks(std::size_t n_slabs) const {
        const std::size_t n_spare = slabs_.size() * slab_pieces_ + n_free_ - n_pieces_;
        return n_spare < std::min(n_slabs * slab_pieces_, most_pieces_ - n_pieces_);
    }
    Slab new_slab() const { return Slab(slab_bytes_, Fill::zeros); }
    void add(Slab slab) { slabs_.push_back(std::move(slab)); }

    std::uint64_t n_bytes() const {
        return slabs_.size() * slab_bytes_ + is_kept_.n_bytes() + blocks_.size() * sizeof(Block);
    }

  private:
    // Pieces of a few images, so that a block's first images are not copied for its later ones, and
    // a block with one image holds little: of 8,192 records at random among ten million, most are
    // the first of their block.
    static constexpr std::uint32_t piece_images = 4;
    static constexpr std::uint32_t no_piece = std::numeric_limits<std::uint32_t>::max();

    struct Block {
        std::uint32_t last_piece = no_piece;
        std::uint32_t n_images = 0;
    };

    // Many are a whole number of huge pages: the first batches touch them all.
    static std::size_t n_words(std::uint32_t n_records) {
        constexpr std::size_t huge_page_words = huge_page_bytes / sizeof(std::uint64_t);
        const std::size_t n = n_records / 64 + 1;
        const std::size_t n_pages = (n + huge_page_words - 1) / huge_page_words;
        return n < huge_page_words / 16 ? n : n_pages * huge_page_words;
    }
    std::uint32_t bound(std::uint32_t n_blocks) const {
        return static_cast<std::uint32_t>(
            std::min<std::uint64_t>(std::uint64_t{n_blocks} << block_bits_, n_records_));
    }

    // A piece is the number of the one before it, then images, each behind its record's number.
    std::uint8_t* at(std::uint32_t piece) {
        return slabs_[piece / slab_pieces_].data() + piece % slab_pieces_ * piece_bytes_;
    }
    std::uint8_t* image_of(std::uint32_t piece, std::uint32_t i) {
        return at(piece) + sizeof piece + std::size_t{i} * (sizeof i + image_bytes_);
    }
    std::uint32_t new_piece() {
        if (free_piece_ != no_piece) {
            const std::uint32_t piece = free_piece_;
            std::memcpy(&free_piece_, at(piece), sizeof free_piece_);
            --n_free_;
            return piece;
        }
        if (n_pieces_ == slabs_.size() * slab_pieces_) {
            slabs_.emplace_back(slab_bytes_, Fill::nothing);
        }
        return n_pieces_++;
    }

    std::uint32_t n_records_ = 0;
    std::uint32_t image_bytes_;
    std::uint32_t block_bits_;
    std::size_t piece_bytes_;
    std::uint32_t n_taken_ = 0;
    AlignedArray<std::uint64_t> is_kept_;  // a bit for each record
    std::vector<Block> blocks_;
    std::size_t most_pieces_ = 0;
    std::size_t slab_bytes_ = 0;
    std::size_t slab_pieces_ = 0;
    std::vector<Slab> slabs_;
    std::uint32_t n_pieces_ = 0;
    std::uint32_t n_free_ = 0;
    std::uint32_t free_piece_ = no_piece;  // each names the next
};

}  // namespace freshrank
