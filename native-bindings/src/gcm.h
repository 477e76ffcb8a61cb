/* AES-GCM as gcm.c asks for it from a library: one operation at a time, on a key that was expanded before. */
#ifndef WEFT_GCM_H
#define WEFT_GCM_H

#include "weft.h"

#define GCM_IV 12
#define GCM_TAG 16

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
	uint8_t salt[4];
	uint8_t icv; /* bytes */
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

#endif
