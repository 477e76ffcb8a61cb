/*
 * The arithmetic of checksum.c without Node: every length and alignment against a slow reference, each span at
 * the very end of an allocation, so that a sanitizer sees one byte too many. Built and run by sanitize.mjs.
 */
#include "../src/checksum.c"
#include <stdio.h>
#include <stdlib.h>

/* What checksum.c takes from addon.c for its calls from JavaScript, which are not made here. */
struct weft *weft_of(napi_env env)
{
	(void)env;
	abort();
}
napi_value throw_usage(napi_env env, const char *message)
{
	(void)env;
	(void)message;
	abort();
}
bool arguments(napi_env env, napi_callback_info info, size_t want, napi_value *values, const char *name)
{
	(void)env;
	(void)info;
	(void)want;
	(void)values;
	(void)name;
	abort();
}
bool get_u32(napi_env env, napi_value value, uint32_t *out)
{
	(void)env;
	(void)value;
	(void)out;
	abort();
}
bool get_words(napi_env env, napi_value value, uint32_t **data, size_t *count)
{
	(void)env;
	(void)value;
	(void)data;
	(void)count;
	abort();
}
napi_value make_int(napi_env env, int value)
{
	(void)env;
	(void)value;
	abort();
}

/* RFC 1071 by the book: words in network byte order, the carry added at once. */
static uint16_t slow(const uint8_t *data, size_t length, uint32_t initial)
{
	uint32_t sum = (initial & 0xffff) + (initial >> 16);
	if (sum > 0xffff) sum -= 0xffff;
	for (size_t i = 0; i < length; i += 2) {
		sum += (uint32_t)data[i] << 8 | (i + 1 < length ? data[i + 1] : 0);
		if (sum > 0xffff) sum -= 0xffff;
	}
	return (uint16_t)sum;
}

static uint32_t state = 1;
static uint32_t noise(void)
{
	state = state * 1664525 + 1013904223;
	return state >> 8;
}

/* A span of `length` bytes that ends where its allocation ends, `shift` bytes off its alignment. */
static void check(size_t length, size_t shift, int fill)
{
	uint8_t *block = malloc(length + shift + 1);
	if (!block) abort();
	uint8_t *data = block + shift + 1;
	for (size_t i = 0; i < length; i++) data[i] = (uint8_t)(fill < 0 ? (int)noise() : fill);
	const uint32_t initials[] = {0, 1, 0xffff, 0x10000, 0x1fffe, 0xffffffff};
	for (size_t i = 0; i < sizeof initials / sizeof initials[0]; i++) {
		uint16_t got = sum_bytes(data, length, initials[i]);
		uint16_t want = slow(data, length, initials[i]);
		if (got == want) continue;
		printf("length %zu, shift %zu, initial %#x: %#x, not %#x\n", length, shift, initials[i], got, want);
		exit(1);
	}
	free(block);
}

int main(void)
{
	static const int fills[] = {-1, 0, 0xff};
	for (size_t length = 0; length <= 600; length++)
		for (size_t shift = 0; shift < 8; shift++)
			for (size_t f = 0; f < 3; f++) check(length, shift, fills[f]);
	for (size_t length = 65000; length <= 66304; length += 163)
		for (size_t f = 0; f < 3; f++) check(length, length % 8, fills[f]);
	/* Sums above 2^32 words of carry: 64 MiB of ones. */
	check((size_t)64 << 20, 3, 0xff);

	uint8_t memory[16];
	const struct weft weft = {.memory = memory, .size = sizeof memory};
	if (!in_memory(&weft, 0, 16) || !in_memory(&weft, 16, 0) || !in_memory(&weft, 15, 1)) return 1;
	if (in_memory(&weft, 16, 1) || in_memory(&weft, 17, 0) || in_memory(&weft, 1, 16) ||
	    in_memory(&weft, 0xffffffff, 1) || in_memory(&weft, 1, 0xffffffff) || in_memory(&weft, 0xffffffff, 0xffffffff))
		return 1;
	puts("checksum: sound");
	return 0;
}
