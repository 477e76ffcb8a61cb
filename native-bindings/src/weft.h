/*
 * What the files of the addon share. The C here does system calls and arithmetic and nothing else: which
 * frame goes where, and what a failure means, is decided above.
 *
 * Batched calls take frame numbers and look up `off` and `len` of the frame memory that this thread attached.
 * Every access is checked against the memory's size; a frame that points outside is reported as EFAULT.
 */
#ifndef WEFT_H
#define WEFT_H

#define _GNU_SOURCE
#include <errno.h>
#include <node_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* linux/udp.h has these, the C library's headers need not. */
#ifndef SOL_UDP
#define SOL_UDP 17
#endif
#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

#define MAX_BATCH 256

/* Per environment (main thread or worker): the frame memory it attached. */
struct weft {
	uint8_t *memory;
	size_t size;
	uint32_t *off;
	uint32_t *len;
	uint32_t *free_large; /* stack of free 64 KiB slots, its top given with each receive */
	size_t frames;
	size_t large;
	napi_ref held[4]; /* the four arrays above, kept while they are attached */
	struct gcm_thread *gcm;
};

struct weft *weft_of(napi_env env);

/* Throws an Error with `code` set to the errno's name; returns NULL so that callers can return it. */
napi_value throw_errno(napi_env env, int error, const char *format, ...) __attribute__((format(printf, 3, 4)));
napi_value throw_usage(napi_env env, const char *message);

/* Reads `want` arguments; throws and returns false when there are fewer. */
bool arguments(napi_env env, napi_callback_info info, size_t want, napi_value *values, const char *name);
bool get_int(napi_env env, napi_value value, int *out);
bool get_u32(napi_env env, napi_value value, uint32_t *out);
bool get_bool_property(napi_env env, napi_value object, const char *name, bool fallback);
int get_int_property(napi_env env, napi_value object, const char *name, int fallback);
/* Copies a string property; an absent one gives "". False when it does not fit. */
bool get_string_property(napi_env env, napi_value object, const char *name, char *out, size_t size);
/* Data and element count of a Uint32Array or Uint8Array; false (and thrown) when it is something else. */
bool get_words(napi_env env, napi_value value, uint32_t **data, size_t *count);
bool get_bytes(napi_env env, napi_value value, uint8_t **data, size_t *count);
napi_value make_int(napi_env env, int value);
void set_property(napi_env env, napi_value object, const char *name, napi_value value);

static inline bool in_memory(const struct weft *weft, uint32_t start, uint32_t length)
{
	return start <= weft->size && length <= weft->size - start;
}

uint16_t sum_bytes(const uint8_t *data, size_t length, uint32_t initial);

/* Makes this thread one that keys are not taken from while it uses them; NULL without memory. */
struct gcm_thread *gcm_join(void);
void gcm_leave(struct gcm_thread *thread);

napi_value file_lock(napi_env env, napi_callback_info info);
napi_value file_map(napi_env env, napi_callback_info info);
napi_value file_reserve(napi_env env, napi_callback_info info);
napi_value file_unlock(napi_env env, napi_callback_info info);
napi_value gcm_libraries(napi_env env, napi_callback_info info);
napi_value gcm_install(napi_env env, napi_callback_info info);
napi_value gcm_remove(napi_env env, napi_callback_info info);
napi_value gcm_seal(napi_env env, napi_callback_info info);
napi_value gcm_open(napi_env env, napi_callback_info info);
napi_value gcm_vector(napi_env env, napi_callback_info info);
napi_value netlink_ask(napi_env env, napi_callback_info info);
napi_value packet_open(napi_env env, napi_callback_info info);
napi_value packet_receive(napi_env env, napi_callback_info info);
napi_value packet_send(napi_env env, napi_callback_info info);
napi_value port_bind(napi_env env, napi_callback_info info);
napi_value port_share(napi_env env, napi_callback_info info);
napi_value tap_open(napi_env env, napi_callback_info info);
napi_value tap_persist(napi_env env, napi_callback_info info);
napi_value tap_plain(napi_env env, napi_callback_info info);
napi_value tap_read(napi_env env, napi_callback_info info);
napi_value tap_write(napi_env env, napi_callback_info info);
napi_value udp_offloads(napi_env env, napi_callback_info info);
napi_value udp_open(napi_env env, napi_callback_info info);
napi_value udp_receive(napi_env env, napi_callback_info info);
napi_value udp_send(napi_env env, napi_callback_info info);
napi_value wait_create(napi_env env, napi_callback_info info);
napi_value wait_add(napi_env env, napi_callback_info info);
napi_value wait_remove(napi_env env, napi_callback_info info);
napi_value wait_ready(napi_env env, napi_callback_info info);
napi_value event_create(napi_env env, napi_callback_info info);
napi_value event_signal(napi_env env, napi_callback_info info);
napi_value event_clear(napi_env env, napi_callback_info info);
napi_value checksum(napi_env env, napi_callback_info info);
napi_value checksums(napi_env env, napi_callback_info info);
napi_value copies(napi_env env, napi_callback_info info);

#endif
