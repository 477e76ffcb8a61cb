/* Copies within the frame memory, many in one call: payload that is cut out of a super-frame, or put together to one. */
#include "weft.h"
#include <string.h>

/*
 * copies(spans: Uint32Array, count): number
 * spans holds count triples (from, to, length); they are done in order. Returns 0, or -EFAULT when one lies outside
 * the memory, and then those before it are done.
 */
napi_value copies(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	uint32_t *spans, count;
	size_t length;
	if (!arguments(env, info, 2, args, "copies")) return NULL;
	if (!get_words(env, args[0], &spans, &length) || !get_u32(env, args[1], &count)) return NULL;
	if (count > length / 3) return throw_usage(env, "copies: count exceeds the array");
	const struct weft *weft = weft_of(env);
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *span = spans + i * 3;
		if (!in_memory(weft, span[0], span[2]) || !in_memory(weft, span[1], span[2])) return make_int(env, -EFAULT);
		memmove(weft->memory + span[1], weft->memory + span[0], span[2]);
	}
	return make_int(env, 0);
}
