#include "textflag.h"

// ROUNDS does four rounds of one lane: s0 is ABEF, s1 is CDGH, m the four
// message words and k the offset of their constants. SHA256RNDS2 takes the sum
// of both from X0 alone, which register renaming makes two registers.
#define ROUNDS(k, m, s0, s1) \
	MOVOU k(AX), X0; \
	PADDD m, X0; \
	SHA256RNDS2 X0, s0, s1; \
	PSHUFD $0x0e, X0, X0; \
	SHA256RNDS2 X0, s1, s0

// SCHEDULE replaces m0, the oldest four of the last 16 message words, by the
// next four.
#define SCHEDULE(m0, m1, m2, m3) \
	SHA256MSG1 m1, m0; \
	MOVO m3, X13; \
	PALIGNR $4, m2, X13; \
	PADDD X13, m0; \
	SHA256MSG2 m3, m0

// FIRST and NEXT do four rounds of both lanes, with the words at offset k of
// the chunks and with scheduled words.
#define FIRST(k, a, b) \
	MOVOU k(SI), a; \
	MOVOU k(DI), b; \
	PSHUFB X15, a; \
	PSHUFB X15, b; \
	ROUNDS(k, a, X1, X2); \
	ROUNDS(k, b, X7, X8)

#define NEXT(k, a0, a1, a2, a3, b0, b1, b2, b3) \
	SCHEDULE(a0, a1, a2, a3); \
	SCHEDULE(b0, b1, b2, b3); \
	ROUNDS(k, a0, X1, X2); \
	ROUNDS(k, b0, X7, X8)

// ADD adds what the state was before the chunk, at offset k of the frame.
#define ADD(k, s) \
	MOVOU k(SP), X13; \
	PADDD X13, s

// LOAD and STORE move a state, A to H, from and to offset k of s.
#define LOAD(k, s0, s1) \
	MOVOU k(BX), X13; \
	MOVOU 16+k(BX), s1; \
	PSHUFD $0xb1, X13, X13; \
	PSHUFD $0x1b, s1, s1; \
	MOVO X13, s0; \
	PALIGNR $8, s1, s0; \
	PBLENDW $0xf0, X13, s1

#define STORE(k, s0, s1) \
	MOVO s0, X13; \
	PUNPCKHQDQ s1, X13; \
	PUNPCKLQDQ s1, s0; \
	PSHUFD $0xb1, X13, X13; \
	PSHUFD $0xb1, s0, s0; \
	MOVOU X13, k(BX); \
	MOVOU s0, 16+k(BX)

// func compress2(s *[2]state, a, b []byte)
TEXT ·compress2(SB), NOSPLIT, $64-56
	MOVQ s+0(FP), BX
	MOVQ a_base+8(FP), SI
	MOVQ a_len+16(FP), CX
	MOVQ b_base+32(FP), DI
	CMPQ CX, b_len+40(FP)
	CMOVQGT b_len+40(FP), CX
	SHRQ $6, CX // chunks
	JZ done
	LEAQ rounds<>(SB), AX
	MOVOU swap<>(SB), X15
	LOAD(0, X1, X2)
	LOAD(32, X7, X8)

chunk:
	MOVOU X1, 0(SP)
	MOVOU X2, 16(SP)
	MOVOU X7, 32(SP)
	MOVOU X8, 48(SP)
	FIRST(0, X3, X9)
	FIRST(16, X4, X10)
	FIRST(32, X5, X11)
	FIRST(48, X6, X12)
	NEXT(64, X3, X4, X5, X6, X9, X10, X11, X12)
	NEXT(80, X4, X5, X6, X3, X10, X11, X12, X9)
	NEXT(96, X5, X6, X3, X4, X11, X12, X9, X10)
	NEXT(112, X6, X3, X4, X5, X12, X9, X10, X11)
	NEXT(128, X3, X4, X5, X6, X9, X10, X11, X12)
	NEXT(144, X4, X5, X6, X3, X10, X11, X12, X9)
	NEXT(160, X5, X6, X3, X4, X11, X12, X9, X10)
	NEXT(176, X6, X3, X4, X5, X12, X9, X10, X11)
	NEXT(192, X3, X4, X5, X6, X9, X10, X11, X12)
	NEXT(208, X4, X5, X6, X3, X10, X11, X12, X9)
	NEXT(224, X5, X6, X3, X4, X11, X12, X9, X10)
	NEXT(240, X6, X3, X4, X5, X12, X9, X10, X11)
	ADD(0, X1)
	ADD(16, X2)
	ADD(32, X7)
	ADD(48, X8)
	ADDQ $64, SI
	ADDQ $64, DI
	DECQ CX
	JNZ chunk
	STORE(0, X1, X2)
	STORE(32, X7, X8)

done:
	RET

// swap reverses the bytes of each word.
DATA swap<>+0(SB)/8, $0x0405060700010203
DATA swap<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL swap<>(SB), RODATA, $16

// rounds holds the constants of the rounds (4.2.2).
DATA rounds<>+0(SB)/8, $0x71374491428a2f98
DATA rounds<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA rounds<>+16(SB)/8, $0x59f111f13956c25b
DATA rounds<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA rounds<>+32(SB)/8, $0x12835b01d807aa98
DATA rounds<>+40(SB)/8, $0x550c7dc3243185be
DATA rounds<>+48(SB)/8, $0x80deb1fe72be5d74
DATA rounds<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA rounds<>+64(SB)/8, $0xefbe4786e49b69c1
DATA rounds<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA rounds<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA rounds<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA rounds<>+96(SB)/8, $0xa831c66d983e5152
DATA rounds<>+104(SB)/8, $0xbf597fc7b00327c8
DATA rounds<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA rounds<>+120(SB)/8, $0x1429296706ca6351
DATA rounds<>+128(SB)/8, $0x2e1b213827b70a85
DATA rounds<>+136(SB)/8, $0x53380d134d2c6dfc
DATA rounds<>+144(SB)/8, $0x766a0abb650a7354
DATA rounds<>+152(SB)/8, $0x92722c8581c2c92e
DATA rounds<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA rounds<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA rounds<>+176(SB)/8, $0xd6990624d192e819
DATA rounds<>+184(SB)/8, $0x106aa070f40e3585
DATA rounds<>+192(SB)/8, $0x1e376c0819a4c116
DATA rounds<>+200(SB)/8, $0x34b0bcb52748774c
DATA rounds<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA rounds<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA rounds<>+224(SB)/8, $0x78a5636f748f82ee
DATA rounds<>+232(SB)/8, $0x8cc7020884c87814
DATA rounds<>+240(SB)/8, $0xa4506ceb90befffa
DATA rounds<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL rounds<>(SB), RODATA, $256
