/* Registration, the attached frame memory, and the small helpers around Node-API. */
#include "weft.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct weft *weft_of(napi_env env)
{
	void *data = NULL;
	napi_get_instance_data(env, &data);
	return data;
}

napi_value throw_errno(napi_env env, int error, const char *format, ...)
{
	char text[512];
	va_list list;
	va_start(list, format);
	int used = vsnprintf(text, sizeof text, format, list);
	va_end(list);
	if (used < 0) used = 0;
	if ((size_t)used < sizeof text) snprintf(text + used, sizeof text - (size_t)used, ": %s", strerror(error));
	const char *name = strerrorname_np(error);
	napi_throw_error(env, name ? name : "EUNKNOWN", text);
	return NULL;
}

napi_value throw_usage(napi_env env, const char *message)
{
	napi_throw_type_error(env, "ERR_INVALID_ARG_VALUE", message);
	return NULL;
}

bool arguments(napi_env env, napi_callback_info info, size_t want, napi_value *values, const char *name)
{
	size_t count = want;
	napi_get_cb_info(env, info, &count, values, NULL, NULL);
	if (count >= want) return true;
	char text[96];
	snprintf(text, sizeof text, "%s takes %zu arguments, got %zu", name, want, count);
	throw_usage(env, text);
	return false;
}

bool get_int(napi_env env, napi_value value, int *out)
{
	if (napi_get_value_int32(env, value, out) == napi_ok) return true;
	throw_usage(env, "expected an integer");
	return false;
}

bool get_u32(napi_env env, napi_value value, uint32_t *out)
{
	if (napi_get_value_uint32(env, value, out) == napi_ok) return true;
	throw_usage(env, "expected an unsigned integer");
	return false;
}

bool get_bool_property(napi_env env, napi_value object, const char *name, bool fallback)
{
	napi_value value;
	bool out = fallback;
	if (napi_get_named_property(env, object, name, &value) == napi_ok) napi_get_value_bool(env, value, &out);
	return out;
}

int get_int_property(napi_env env, napi_value object, const char *name, int fallback)
{
	napi_value value;
	int out = fallback;
	if (napi_get_named_property(env, object, name, &value) == napi_ok) napi_get_value_int32(env, value, &out);
	return out;
}

bool get_string_property(napi_env env, napi_value object, const char *name, char *out, size_t size)
{
	napi_value value;
	napi_valuetype type;
	size_t length = 0;
	char text[96];
	out[0] = 0;
	if (napi_typeof(env, object, &type) != napi_ok || type != napi_object) {
		throw_usage(env, "expected an object of options");
		return false;
	}
	if (napi_get_named_property(env, object, name, &value) != napi_ok) return false; /* its getter threw */
	if (napi_typeof(env, value, &type) == napi_ok && type == napi_undefined) return true;
	if (napi_get_value_string_utf8(env, value, NULL, 0, &length) != napi_ok) {
		snprintf(text, sizeof text, "%s is not a string", name);
		throw_usage(env, text);
		return false;
	}
	if (length >= size) {
		snprintf(text, sizeof text, "%s is longer than %zu bytes", name, size - 1);
		throw_usage(env, text);
		return false;
	}
	napi_get_value_string_utf8(env, value, out, size, &length);
	return true;
}

static bool get_array(napi_env env, napi_value value, napi_typedarray_type want, void **data, size_t *count)
{
	napi_typedarray_type type;
	napi_value buffer;
	size_t offset;
	if (napi_get_typedarray_info(env, value, &type, count, data, &buffer, &offset) == napi_ok && type == want)
		return true;
	throw_usage(env, want == napi_uint32_array ? "expected a Uint32Array" : "expected a Uint8Array");
	return false;
}

bool get_words(napi_env env, napi_value value, uint32_t **data, size_t *count)
{
	return get_array(env, value, napi_uint32_array, (void **)data, count);
}

bool get_bytes(napi_env env, napi_value value, uint8_t **data, size_t *count)
{
	return get_array(env, value, napi_uint8_array, (void **)data, count);
}

napi_value make_int(napi_env env, int value)
{
	napi_value out = NULL;
	napi_create_int32(env, value, &out);
	return out;
}

void set_property(napi_env env, napi_value object, const char *name, napi_value value)
{
	napi_set_named_property(env, object, name, value);
}

/* attach(memory: Uint8Array, off: Uint32Array, len: Uint32Array, freeLarge: Uint32Array): void */
static napi_value attach(napi_env env, napi_callback_info info)
{
	napi_value args[4];
	if (!arguments(env, info, 4, args, "attach")) return NULL;
	struct weft *weft = weft_of(env);
	struct weft next = {.gcm = weft->gcm};
	size_t lengths = 0;
	if (!get_bytes(env, args[0], &next.memory, &next.size)) return NULL;
	if (!get_words(env, args[1], &next.off, &next.frames)) return NULL;
	if (!get_words(env, args[2], &next.len, &lengths)) return NULL;
	if (!get_words(env, args[3], &next.free_large, &next.large)) return NULL;
	if (lengths != next.frames) return throw_usage(env, "off and len differ in length");
	/* Without a reference the collector would give the bytes away while the calls still point to them. */
	for (size_t i = 0; i < 4; i++)
		if (napi_create_reference(env, args[i], 1, &next.held[i]) != napi_ok)
			return throw_errno(env, ENOMEM, "cannot attach the frame memory");
	for (size_t i = 0; i < 4; i++)
		if (weft->held[i]) napi_delete_reference(env, weft->held[i]);
	*weft = next;
	return NULL;
}

/* close(fd: number): void */
static napi_value close_fd(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	int fd;
	if (!arguments(env, info, 1, args, "close") || !get_int(env, args[0], &fd)) return NULL;
	if (close(fd) < 0) return throw_errno(env, errno, "cannot close descriptor %d", fd);
	return NULL;
}

static void finalize(napi_env env, void *data, void *hint)
{
	(void)env;
	(void)hint;
	gcm_leave(((struct weft *)data)->gcm);
	free(data);
}

NAPI_MODULE_INIT()
{
	static const struct {
		const char *name;
		napi_callback call;
	} functions[] = {
		{"attach", attach},
		{"close", close_fd},
		{"fileLock", file_lock},
		{"fileMap", file_map},
		{"fileReserve", file_reserve},
		{"fileUnlock", file_unlock},
		{"gcmLibraries", gcm_libraries},
		{"gcmInstall", gcm_install},
		{"gcmRemove", gcm_remove},
		{"gcmSeal", gcm_seal},
		{"gcmOpen", gcm_open},
		{"gcmVector", gcm_vector},
		{"netlinkAsk", netlink_ask},
		{"packetOpen", packet_open},
		{"packetReceive", packet_receive},
		{"packetSend", packet_send},
		{"portBind", port_bind},
		{"portShare", port_share},
		{"tapOpen", tap_open},
		{"tapPersist", tap_persist},
		{"tapPlain", tap_plain},
		{"tapRead", tap_read},
		{"tapWrite", tap_write},
		{"udpOffloads", udp_offloads},
		{"udpOpen", udp_open},
		{"udpReceive", udp_receive},
		{"udpSend", udp_send},
		{"waitCreate", wait_create},
		{"waitAdd", wait_add},
		{"waitRemove", wait_remove},
		{"wait", wait_ready},
		{"eventCreate", event_create},
		{"eventSignal", event_signal},
		{"eventClear", event_clear},
		{"checksum", checksum},
		{"checksums", checksums},
		{"copies", copies},
	};
	struct weft *weft = calloc(1, sizeof *weft);
	if (weft) weft->gcm = gcm_join();
	if (!weft || !weft->gcm) {
		free(weft);
		return throw_errno(env, ENOMEM, "cannot load weft.node");
	}
	napi_set_instance_data(env, weft, finalize, NULL);
	for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
		napi_value function;
		napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].call, NULL, &function);
		napi_set_named_property(env, exports, functions[i].name, function);
	}
	return exports;
}
