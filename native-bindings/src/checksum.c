/* The Internet checksum (RFC 1071) over long runs of bytes. Headers are summed above; this is for payload. */
#include "weft.h"
#include <string.h>

static uint16_t fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

/* One's complement sum, in network byte order as a number, of bytes that begin at an even position. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
uint16_t sum_bytes(const uint8_t *data, size_t length, uint32_t initial)
{
	/* Words of 32 bits added in 64: no carry is lost for any length up to 16 GiB, and it vectorises. */
	uint64_t sum = 0;
	size_t words = length / 4;
	for (size_t i = 0; i < words; i++) {
		uint32_t word;
		memcpy(&word, data + i * 4, 4);
		sum += word;
	}
	size_t done = words * 4;
	if (length & 2) {
		uint16_t half;
		memcpy(&half, data + done, 2);
		sum += half;
		done += 2;
	}
	if (length & 1) sum += data[done];
	/* Little-endian words were added; the one's complement sum only needs its two bytes swapped (RFC 1071, 2B). */
	uint16_t swapped = fold(sum);
	return fold((uint64_t)(uint16_t)(swapped << 8 | swapped >> 8) + initial);
}

/* checksum(offset, length, initial): number – folded sum, not complemented. Throws RangeError outside the memory. */
napi_value checksum(napi_env env, napi_callback_info info)
{
	napi_value args[3];
	uint32_t start, length, initial;
	if (!arguments(env, info, 3, args, "checksum")) return NULL;
	if (!get_u32(env, args[0], &start) || !get_u32(env, args[1], &length) || !get_u32(env, args[2], &initial)) return NULL;
	const struct weft *weft = weft_of(env);
	if (!in_memory(weft, start, length)) return throw_usage(env, "checksum: the span lies outside the frame memory");
	return make_int(env, sum_bytes(weft->memory + start, length, initial));
}

/*
 * checksums(spans: Uint32Array, count, out: Uint32Array): number
 * spans holds count triples (offset, length, initial); out gets count folded sums. Returns 0 or -EFAULT.
 */
napi_value checksums(napi_env env, napi_callback_info info)
{
	napi_value args[3];
	uint32_t *spans, *out, count;
	size_t spans_length, out_length;
	if (!arguments(env, info, 3, args, "checksums")) return NULL;
	if (!get_words(env, args[0], &spans, &spans_length) || !get_u32(env, args[1], &count) ||
	    !get_words(env, args[2], &out, &out_length))
		return NULL;
	if (count > spans_length / 3 || count > out_length) return throw_usage(env, "checksums: count exceeds an array");
	const struct weft *weft = weft_of(env);
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *span = spans + i * 3;
		if (!in_memory(weft, span[0], span[1])) return make_int(env, -EFAULT);
		out[i] = sum_bytes(weft->memory + span[0], span[1], span[2]);
	}
	return make_int(env, 0);
}
