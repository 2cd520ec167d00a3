// AMX for processors that have none, for tests: a SIGILL handler that executes the tile instructions.
//
// The machine code under test is the one that ships. Where it meets an instruction of AMX the processor raises SIGILL;
// the handler decodes the instruction from the interrupted context, does what Intel's manual (volume 2, chapter 3 and
// the AMX exception classes) says to the thread's own tiles, and steps over it. Everything else that raises SIGILL, and
// every use that a processor would refuse (a product of tiles whose shapes do not fit, a tile without a shape), goes on
// to the handler that was there before, which ends the process.
#include <immintrin.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(Shapes) == 64);

struct State {
    Shapes shapes{};
    uint8_t tiles[kTiles][kRows][kRowBytes]{};
};
// Made at a thread's first tile instruction: the signal is the thread's own doing, in code that holds no lock.
thread_local State state;

struct sigaction before;
long executed = 0;

bool usable(int tile) { return state.shapes.palette == 1 && state.shapes.rows[tile] && state.shapes.bytes[tile]; }

// ---- instructions: false is what a processor refuses -----------------------------------------------------------------

bool load_shapes(const void* from) {
    Shapes shapes;
    std::memcpy(&shapes, from, sizeof shapes);
    if (shapes.palette == 0) {
        state = State{};
        return true;
    }
    if (shapes.palette != 1 || shapes.start_row >= kRows) return false;
    for (uint8_t each : shapes.reserved)
        if (each) return false;
    for (int tile = 0; tile < 16; ++tile) {
        const int rows = shapes.rows[tile], bytes = shapes.bytes[tile];
        if (tile >= kTiles ? rows || bytes : rows > kRows || bytes > kRowBytes || !rows != !bytes) return false;
    }
    state = State{};
    state.shapes = shapes;
    return true;
}

bool clear(int tile) {
    if (!usable(tile)) return false;
    std::memset(state.tiles[tile], 0, sizeof state.tiles[tile]);
    return true;
}

bool load(int tile, const uint8_t* from, int64_t stride) {
    if (!usable(tile) || state.shapes.start_row) return false;
    clear(tile);
    for (int row = 0; row < state.shapes.rows[tile]; ++row)
        std::memcpy(state.tiles[tile][row], from + row * stride, state.shapes.bytes[tile]);
    return true;
}

bool store(int tile, uint8_t* to, int64_t stride) {
    if (!usable(tile) || state.shapes.start_row) return false;
    for (int row = 0; row < state.shapes.rows[tile]; ++row)
        std::memcpy(to + row * stride, state.tiles[tile][row], state.shapes.bytes[tile]);
    return true;
}

// sum (M, N) += a (M, K) b (K / 4, N, 4), in 32 bits that wrap around.
template <class A, class B>
bool dot(int sum, int a, int b) {
    const Shapes& s = state.shapes;
    if (sum == a || sum == b || a == b || !usable(sum) || !usable(a) || !usable(b)) return false;
    if (s.bytes[sum] % 4 || s.bytes[a] % 4 || s.bytes[b] % 4) return false;
    if (s.rows[sum] != s.rows[a] || s.bytes[a] / 4 != s.rows[b] || s.bytes[sum] != s.bytes[b]) return false;
    for (int m = 0; m < s.rows[sum]; ++m) {
        uint32_t line[kRowBytes / 4];
        std::memcpy(line, state.tiles[sum][m], sizeof line);
        for (int k = 0; k < s.rows[b]; ++k)
            for (int n = 0; n < s.bytes[sum] / 4; ++n)
                for (int i = 0; i < 4; ++i) {
                    const A x = static_cast<A>(state.tiles[a][m][4 * k + i]);
                    const B y = static_cast<B>(state.tiles[b][k][4 * n + i]);
                    line[n] += static_cast<uint32_t>(static_cast<int32_t>(x) * static_cast<int32_t>(y));
                }
        std::memset(state.tiles[sum][m], 0, kRowBytes);
        std::memcpy(state.tiles[sum][m], line, s.bytes[sum]);
    }
    std::memset(state.tiles[sum][s.rows[sum]], 0, static_cast<size_t>(kRows - s.rows[sum]) * kRowBytes);
    return true;
}

// ---- decoding --------------------------------------------------------------------------------------------------------

// C4, a byte RXBmmmmm, a byte Wvvvv0pp, the opcode, ModRM, perhaps SIB and a displacement.
class Instruction {
  public:
    explicit Instruction(greg_t* registers)
        : registers_(registers), at_(reinterpret_cast<const uint8_t*>(registers[REG_RIP])) {}

    bool execute() {
        const uint8_t* code = at_;
        if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84)) return false;  // map 0F38, W0, 128 bits
        r_ = !(code[1] & 0x80), x_ = !(code[1] & 0x40), b_ = !(code[1] & 0x20);
        vvvv_ = ~code[2] >> 3 & 15, prefix_ = code[2] & 3, opcode_ = code[3];
        mod_ = code[4] >> 6, reg_ = code[4] >> 3 & 7, rm_ = code[4] & 7;
        at_ = code + 5;
        if (!dispatch()) return false;
        registers_[REG_RIP] = reinterpret_cast<greg_t>(at_);
        return true;
    }

  private:
    enum Prefix { kNone, k66, kF3, kF2 };

    bool dispatch() {
        if (opcode_ == 0x49 && !vvvv_) return shape();
        if (opcode_ == 0x4b && !vvvv_ && mod_ != 3 && rm_ == 4 && !r_) return move();
        if (opcode_ == 0x5e && mod_ == 3 && vvvv_ < kTiles && !r_ && !b_) return multiply();
        return false;
    }

    bool shape() {
        if (mod_ == 3 && prefix_ == kF2 && rm_ == 0 && !r_) return clear(reg_);  // TILEZERO
        if (mod_ == 3 && prefix_ == kNone && rm_ == 0 && reg_ == 0) {              // TILERELEASE
            state = State{};
            return true;
        }
        if (mod_ == 3 || reg_ != 0) return false;
        void* const address = reinterpret_cast<void*>(memory().address);
        if (prefix_ == kNone) return load_shapes(address);                                             // LDTILECFG
        return prefix_ == k66 && std::memcpy(address, &state.shapes, sizeof(Shapes));                  // STTILECFG
    }

    bool move() {
        const Memory place = memory();
        uint8_t* const address = reinterpret_cast<uint8_t*>(place.address);
        if (prefix_ == kF2 || prefix_ == k66) return load(reg_, address, place.stride);  // TILELOADD, TILELOADDT1
        return prefix_ == kF3 && store(reg_, address, place.stride);                     // TILESTORED
    }

    bool multiply() {
        switch (prefix_) {
            case kF2: return dot<int8_t, int8_t>(reg_, rm_, vvvv_);    // TDPBSSD
            case kF3: return dot<int8_t, uint8_t>(reg_, rm_, vvvv_);   // TDPBSUD
            case k66: return dot<uint8_t, int8_t>(reg_, rm_, vvvv_);   // TDPBUSD
            default: return dot<uint8_t, uint8_t>(reg_, rm_, vvvv_);   // TDPBUUD
        }
    }

    int64_t value(int number) const {
        static constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        return registers_[kOrder[number]];
    }

    int64_t displacement(int bytes) {
        int32_t wide = 0;
        if (bytes == 1) wide = static_cast<int8_t>(*at_);
        if (bytes == 4) std::memcpy(&wide, at_, 4);
        at_ += bytes;
        return wide;
    }

    // For tiles the scaled index is the distance of rows, for LDTILECFG a part of the address.
    struct Memory {
        int64_t address, stride;
    };
    Memory memory() {
        const bool tiles = opcode_ == 0x4b;
        int base = rm_;
        int64_t index = 0;
        if (rm_ == 4) {
            const uint8_t sib = *at_++;
            base = sib & 7;
            const int number = (sib >> 3 & 7) + 8 * x_;
            if (number != 4) index = value(number) * (int64_t{1} << (sib >> 6));
        }
        int64_t address;
        if (base == 5 && mod_ == 0) {
            address = displacement(4);
            if (rm_ == 5) address += reinterpret_cast<int64_t>(at_);  // from the next instruction on
        } else {
            address = value(base + 8 * b_) + displacement(mod_ == 1 ? 1 : mod_ == 2 ? 4 : 0);
        }
        return tiles ? Memory{address, index} : Memory{address + index, 0};
    }

    greg_t* registers_;
    const uint8_t* at_;
    int r_ = 0, x_ = 0, b_ = 0, vvvv_ = 0, prefix_ = 0, opcode_ = 0, mod_ = 0, reg_ = 0, rm_ = 0;
};

// The handler from before decides; where it was the system's own, the instruction raises the signal once more and ends
// the process.
void pass_on(int number, siginfo_t* info, void* context) {
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        before.sa_handler(number);
    else
        sigaction(SIGILL, &before, nullptr);
}

void handle(int number, siginfo_t* info, void* context) {
    greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    if (Instruction(registers).execute())
        __atomic_add_fetch(&executed, 1, __ATOMIC_RELAXED);
    else
        pass_on(number, info, context);
}


}  // namespace

extern "C" {

int install() {
    struct sigaction ours {};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER;
    return sigaction(SIGILL, &ours, &before);
}

int remove_handler() { return sigaction(SIGILL, &before, nullptr); }

// How many instructions were emulated so far.
long executed_count() { return __atomic_load_n(&executed, __ATOMIC_RELAXED); }

// One product by the real instructions: shapes as LDTILECFG wants them for tiles 0 (sum), 1 (a) and 2 (b), their bytes in
// lines of 64. `signs` is 2 where a's bytes are signed, plus 1 where b's are.
void product(int signs, const void* shapes, void* sum, const void* a, const void* b) {
    const int64_t stride = kRowBytes;
    asm volatile("ldtilecfg (%0)" ::"r"(shapes) : "memory");
    asm volatile("tileloadd (%0,%1,1), %%tmm0" ::"r"(sum), "r"(stride) : "memory");
    asm volatile("tileloadd -64(%0,%1,2), %%tmm1" ::"r"(static_cast<const char*>(a) + 64), "r"(stride / 2) : "memory");
    asm volatile("tileloaddt1 (%0,%1,1), %%tmm2" ::"r"(b), "r"(stride) : "memory");
    if (signs == 0) asm volatile("tdpbuud %tmm2, %tmm1, %tmm0");
    if (signs == 1) asm volatile("tdpbusd %tmm2, %tmm1, %tmm0");
    if (signs == 2) asm volatile("tdpbsud %tmm2, %tmm1, %tmm0");
    if (signs == 3) asm volatile("tdpbssd %tmm2, %tmm1, %tmm0");
    asm volatile("tilestored %%tmm0, (%0,%1,1)" ::"r"(sum), "r"(stride) : "memory");
    asm volatile("tilerelease" ::: "memory");
}

// What STTILECFG says after these shapes.
void shapes_back(const void* shapes, void* out) {
    asm volatile("ldtilecfg (%0)" ::"r"(shapes) : "memory");
    asm volatile("sttilecfg 0x40(%0)" ::"r"(static_cast<char*>(out) - 64) : "memory");
    asm volatile("tilerelease" ::: "memory");
}

void unknown_instruction() { asm volatile("ud2"); }
}
