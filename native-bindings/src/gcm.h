/* AES-GCM as gcm.c asks for it from a library: one operation at a time, on a key that was expanded before. */
#ifndef WEFT_GCM_H
#define WEFT_GCM_H

#include "weft.h"

#define GCM_IV 12
#define GCM_TAG 16
#define GCM_SLOTS 16384 /* MAX_ASSOCIATIONS of engine/tables/association-state.ts: the two must be the same */
#define GCM_JOB_WORDS 6 /* as in index.ts, and so is the next */
#define GCM_JOBS 1024

/* One operation. Source and destination are the same or do not overlap; a length of 0 is allowed. */
struct gcm_text {
	const uint8_t *iv; /* GCM_IV bytes */
	const uint8_t *aad;
	size_t aad_length;
	const uint8_t *source;
	uint8_t *destination;
	size_t length;
	uint8_t *tag; /* sealing: where it goes; opening: what it must be */
	size_t tag_length;
};

/* What all libraries' keys begin with. */
struct gcm_key {
	const struct gcm_library *library;
	/* Pulls the parts of this key that a text of `length` bytes needs into the cache; NULL: there is no point in it. */
	void (*prefetch)(const struct gcm_key *key, size_t length);
	uint32_t salt; /* as its four bytes lie */
	uint8_t icv;   /* bytes */
	bool esn;
};

struct gcm_library {
	const char *name;
	/* Whether this build, this CPU and this process have it. */
	bool (*usable)(void);
	/* Expands a key of 16, 24 or 32 bytes; NULL when there is no memory for it. */
	struct gcm_key *(*expand)(const uint8_t *key, size_t length);
	/* Wipes the key and gives its memory back. */
	void (*discard)(struct gcm_key *key);
	/* False when the library refused, which leaves what is in the destination undefined. */
	bool (*seal)(struct gcm_key *key, const struct gcm_text *text);
	/* False when the tag is wrong; the destination may then hold what was deciphered and is to be wiped. */
	bool (*open)(struct gcm_key *key, const struct gcm_text *text);
};

extern const struct gcm_library gcm_ipsec_mb;
extern const struct gcm_library gcm_openssl;

/* Puts a key into an empty slot; false when there is one already. */
bool gcm_put(uint32_t slot, struct gcm_key *key);
/* Empties a slot, waits for the batches that may still use its key, and discards that. */
void gcm_wipe(uint32_t slot);
/* gcmSeal and gcmOpen of index.ts; at most GCM_JOBS. */
int gcm_seal_batch(const struct weft *weft, const uint32_t *jobs, uint32_t count);
int gcm_open_batch(const struct weft *weft, const uint32_t *jobs, uint32_t count, uint32_t *results);

#endif
