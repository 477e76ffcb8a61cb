/* AES-GCM for JavaScript: its libraries, keys into slots, and batches of ESP packets, which gcm-batch.c does. */
#include "gcm.h"
#include <stdio.h>
#include <string.h>

#define MAX_TEXT (1 << 20)

static const struct gcm_library *const libraries[] = {&gcm_ipsec_mb, &gcm_openssl};
#define LIBRARIES (sizeof libraries / sizeof libraries[0])

struct bytes {
	uint8_t *data;
	size_t length;
};

/* An integer property of at least 0; -1 when it is anything else. */
static int get_count_property(napi_env env, napi_value object, const char *name)
{
	napi_value value;
	double number = -1;
	if (napi_get_named_property(env, object, name, &value) == napi_ok) napi_get_value_double(env, value, &number);
	return number >= 0 && number <= INT32_MAX && number == (int)number ? (int)number : -1;
}

/*
 * Properties that are Uint8Arrays. All are fetched before the bytes of any are looked up: a getter is a function, and
 * may give away what an earlier one returned.
 */
static bool get_byte_properties(napi_env env, napi_value object, const char *const *names, size_t count,
                                struct bytes *out)
{
	napi_value values[4];
	for (size_t i = 0; i < count; i++)
		if (napi_get_named_property(env, object, names[i], &values[i]) != napi_ok) return false;
	for (size_t i = 0; i < count; i++)
		if (!get_bytes(env, values[i], &out[i].data, &out[i].length)) return false;
	return true;
}

/* The library that the options name, or the preferred one; throws and returns NULL when it is not to be had. */
static const struct gcm_library *choose(napi_env env, napi_value options)
{
	char name[16], text[96];
	if (!get_string_property(env, options, "library", name, sizeof name)) return NULL;
	for (size_t i = 0; i < LIBRARIES; i++)
		if ((!name[0] || strcmp(libraries[i]->name, name) == 0) && libraries[i]->usable()) return libraries[i];
	snprintf(text, sizeof text, "AES-GCM: %s available in this build on this CPU", name[0] ? "the library is not" : "no library is");
	throw_usage(env, text);
	return NULL;
}

static bool key_length_ok(size_t length)
{
	return length == 16 || length == 24 || length == 32;
}

/* gcmLibraries(): string[] – the preferred first. */
napi_value gcm_libraries(napi_env env, napi_callback_info info)
{
	(void)info;
	napi_value list, name;
	uint32_t count = 0;
	if (napi_create_array(env, &list) != napi_ok) return NULL;
	for (size_t i = 0; i < LIBRARIES; i++) {
		if (!libraries[i]->usable()) continue;
		napi_create_string_utf8(env, libraries[i]->name, NAPI_AUTO_LENGTH, &name);
		napi_set_element(env, list, count++, name);
	}
	return list;
}

/* gcmInstall({slot, key: Uint8Array, salt: Uint8Array, icv, esn, library?}): void */
napi_value gcm_install(napi_env env, napi_callback_info info)
{
	static const char *const names[] = {"key", "salt"};
	napi_value args[1];
	struct bytes given[2];
	char text[96];
	if (!arguments(env, info, 1, args, "gcmInstall")) return NULL;
	const struct gcm_library *library = choose(env, args[0]);
	if (!library) return NULL;
	int slot = get_count_property(env, args[0], "slot");
	int icv = get_count_property(env, args[0], "icv");
	bool esn = get_bool_property(env, args[0], "esn", false);
	if (!get_byte_properties(env, args[0], names, 2, given)) return NULL;
	if (slot < 0 || slot >= GCM_SLOTS) return throw_usage(env, "gcmInstall: slot is not a number from 0 to 16383");
	if (!key_length_ok(given[0].length)) return throw_usage(env, "gcmInstall: key is not of 16, 24 or 32 bytes");
	if (given[1].length != 4) return throw_usage(env, "gcmInstall: salt is not of 4 bytes");
	if (icv != 8 && icv != 12 && icv != 16) return throw_usage(env, "gcmInstall: icv is not 8, 12 or 16 bytes");
	struct gcm_key *key = library->expand(given[0].data, given[0].length);
	if (!key) return throw_errno(env, ENOMEM, "cannot expand a key for slot %d", slot);
	memcpy(&key->salt, given[1].data, sizeof key->salt);
	key->icv = (uint8_t)icv;
	key->esn = esn;
	if (gcm_put((uint32_t)slot, key)) return NULL;
	library->discard(key);
	snprintf(text, sizeof text, "gcmInstall: slot %d holds a key, which is to be removed first", slot);
	return throw_usage(env, text);
}

/* gcmRemove(slot): void – returns when the key is wiped. */
napi_value gcm_remove(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	uint32_t slot;
	if (!arguments(env, info, 1, args, "gcmRemove") || !get_u32(env, args[0], &slot)) return NULL;
	if (slot >= GCM_SLOTS) return throw_usage(env, "gcmRemove: slot is not a number from 0 to 16383");
	gcm_wipe(slot);
	return NULL;
}

/* gcmSeal(jobs: Uint32Array, count): number – 0 or a negative errno. */
napi_value gcm_seal(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	uint32_t *jobs, count;
	size_t words;
	if (!arguments(env, info, 2, args, "gcmSeal")) return NULL;
	if (!get_words(env, args[0], &jobs, &words) || !get_u32(env, args[1], &count)) return NULL;
	if (count > GCM_JOBS || count > words / GCM_JOB_WORDS)
		return throw_usage(env, "gcmSeal: count exceeds 1024 or the array");
	return make_int(env, gcm_seal_batch(weft_of(env), jobs, count));
}

/* gcmOpen(jobs: Uint32Array, count, results: Uint32Array): number – 0 or a negative errno. */
napi_value gcm_open(napi_env env, napi_callback_info info)
{
	napi_value args[3];
	uint32_t *jobs, *results, count;
	size_t words, room;
	if (!arguments(env, info, 3, args, "gcmOpen")) return NULL;
	if (!get_words(env, args[0], &jobs, &words) || !get_u32(env, args[1], &count) ||
	    !get_words(env, args[2], &results, &room))
		return NULL;
	if (count > GCM_JOBS || count > words / GCM_JOB_WORDS || count > room)
		return throw_usage(env, "gcmOpen: count exceeds 1024 or an array");
	return make_int(env, gcm_open_batch(weft_of(env), jobs, count, results));
}

/* The operation of gcmVector: its result in a new Uint8Array, null when the tag is wrong. */
static napi_value run_vector(napi_env env, const struct gcm_library *library, const struct bytes *given, size_t icv,
                             bool encrypt)
{
	const struct bytes *input = &given[3];
	napi_value buffer, result;
	uint8_t tag[GCM_TAG];
	void *out = NULL;
	size_t plain = encrypt ? input->length : input->length - icv;
	size_t size = encrypt ? plain + icv : plain;
	if (napi_create_arraybuffer(env, size, &out, &buffer) != napi_ok)
		return throw_errno(env, ENOMEM, "gcmVector: cannot hold the result");
	struct gcm_key *key = library->expand(given[0].data, given[0].length);
	if (!key) return throw_errno(env, ENOMEM, "gcmVector: cannot expand the key");
	const struct gcm_text text = {
		.iv = given[1].data,
		.aad = given[2].data,
		.aad_length = given[2].length,
		/* An array without bytes may have no address, which the libraries refuse. */
		.source = plain > 0 ? input->data : tag,
		.destination = plain > 0 ? out : tag,
		.length = plain,
		.tag = encrypt ? tag : input->data + plain,
		.tag_length = encrypt ? sizeof tag : icv,
	};
	bool good = encrypt ? library->seal(key, &text) : library->open(key, &text);
	library->discard(key);
	if (!good) {
		if (size > 0) memset(out, 0, size);
		napi_get_null(env, &result);
		return result;
	}
	if (encrypt) memcpy((uint8_t *)out + plain, tag, icv);
	return napi_create_typedarray(env, napi_uint8_array, size, buffer, 0, &result) == napi_ok ? result : NULL;
}

/* gcmVector({library?, key, iv, aad, text, icv, encrypt}): Uint8Array | null – for test vectors, not for packets. */
napi_value gcm_vector(napi_env env, napi_callback_info info)
{
	static const char *const names[] = {"key", "iv", "aad", "text"};
	napi_value args[1];
	struct bytes given[4];
	if (!arguments(env, info, 1, args, "gcmVector")) return NULL;
	const struct gcm_library *library = choose(env, args[0]);
	if (!library) return NULL;
	int icv = get_count_property(env, args[0], "icv");
	bool encrypt = get_bool_property(env, args[0], "encrypt", true);
	if (!get_byte_properties(env, args[0], names, 4, given)) return NULL;
	if (!key_length_ok(given[0].length)) return throw_usage(env, "gcmVector: key is not of 16, 24 or 32 bytes");
	if (given[1].length != GCM_IV) return throw_usage(env, "gcmVector: iv is not of 12 bytes");
	if (icv < 4 || icv > GCM_TAG) return throw_usage(env, "gcmVector: icv is not 4 to 16 bytes");
	if (given[2].length > MAX_TEXT || given[3].length > MAX_TEXT)
		return throw_usage(env, "gcmVector: aad or text is longer than 1 MiB");
	if (!encrypt && given[3].length < (size_t)icv)
		return throw_usage(env, "gcmVector: text is shorter than its icv");
	return run_vector(env, library, given, (size_t)icv, encrypt);
}
