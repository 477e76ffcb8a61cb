/* TAP devices: open or re-attach, in any network namespace, and burst read and write. */
#include "weft.h"
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Newer than the headers of Debian 12. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#define TUN_F_UDP_TUNNEL_GSO 0x80
#define TUN_F_UDP_TUNNEL_GSO_CSUM 0x100

struct opening {
	char name[IFNAMSIZ];
	char netns[512];
	bool persist;
	bool tunnel; /* want a 24-byte vnet header with UDP-tunnel GSO */
	int fd;
	int vnet; /* length of the vnet header agreed on, bytes */
	unsigned offloads;
	bool existed;
	int error;
	const char *what; /* what failed */
};

static void fail(struct opening *o, const char *what)
{
	o->error = errno;
	o->what = what;
	if (o->fd >= 0) close(o->fd);
	o->fd = -1;
}

/* Offers offloads from the most to the least; kernels before 6.17 and 6.2 refuse the first two with EINVAL. */
static void agree_offloads(struct opening *o)
{
	const unsigned base = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
	const unsigned uso = TUN_F_USO4 | TUN_F_USO6;
	const unsigned offers[] = {base | uso, base, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6, TUN_F_CSUM, 0};
	if (o->tunnel) {
		int size = 24;
		const unsigned all = base | uso | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM;
		if (ioctl(o->fd, TUNSETVNETHDRSZ, &size) == 0 && ioctl(o->fd, TUNSETOFFLOAD, all) == 0) {
			o->vnet = size;
			o->offloads = all;
			return;
		}
	}
	int size = 12;
	if (ioctl(o->fd, TUNSETVNETHDRSZ, &size) < 0) {
		fail(o, "set the vnet header size");
		return;
	}
	o->vnet = size;
	for (size_t i = 0; i < sizeof offers / sizeof offers[0]; i++) {
		if (ioctl(o->fd, TUNSETOFFLOAD, offers[i]) == 0) {
			o->offloads = offers[i];
			return;
		}
	}
	fail(o, "set offloads");
}

static bool exists(const char *name)
{
	struct ifreq request = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0) return false;
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
	bool found = ioctl(fd, SIOCGIFINDEX, &request) == 0;
	close(fd);
	return found;
}

static void open_here(struct opening *o)
{
	o->existed = o->name[0] && exists(o->name);
	o->fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (o->fd < 0) {
		fail(o, "open /dev/net/tun");
		return;
	}
	struct ifreq request = {0};
	memcpy(request.ifr_name, o->name, sizeof request.ifr_name);
	/* Multi-queue always: a device keeps the mode it was made with, and a later start may want more workers. */
	request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
	if (ioctl(o->fd, TUNSETIFF, &request) < 0) {
		fail(o, o->existed ? "attach to the existing interface" : "create the TAP");
		return;
	}
	memcpy(o->name, request.ifr_name, sizeof o->name);
	agree_offloads(o);
	if (o->fd >= 0 && ioctl(o->fd, TUNSETPERSIST, o->persist ? 1 : 0) < 0) fail(o, "make the TAP persistent");
}

/*
 * A namespace belongs to a thread, so the work is done in one that ends afterwards: nothing of Node's ever
 * runs in the foreign namespace, and no way back is needed.
 */
static void *open_there(void *argument)
{
	struct opening *o = argument;
	int ns = open(o->netns, O_RDONLY | O_CLOEXEC);
	if (ns < 0) {
		fail(o, "open the network namespace");
		return NULL;
	}
	int entered = setns(ns, CLONE_NEWNET);
	if (entered < 0) fail(o, "enter the network namespace");
	close(ns);
	if (entered == 0) open_here(o);
	return NULL;
}

/*
 * tapOpen({name, netns, persist, tunnel}): {fd, name, vnet, offloads, existed}
 * Opens or re-attaches one queue of a TAP. netns "" is the caller's own. Throws with the errno's name.
 */
napi_value tap_open(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	struct opening o = {.fd = -1};
	if (!arguments(env, info, 1, args, "tapOpen")) return NULL;
	if (!get_string_property(env, args[0], "name", o.name, sizeof o.name)) return NULL;
	if (!get_string_property(env, args[0], "netns", o.netns, sizeof o.netns)) return NULL;
	o.persist = get_bool_property(env, args[0], "persist", false);
	o.tunnel = get_bool_property(env, args[0], "tunnel", false);
	if (o.netns[0]) {
		pthread_t thread;
		int error = pthread_create(&thread, NULL, open_there, &o);
		if (error) return throw_errno(env, error, "cannot start a thread");
		pthread_join(thread, NULL);
	} else {
		open_here(&o);
	}
	if (o.fd < 0)
		return throw_errno(env, o.error, "TAP %s%s%s: cannot %s", o.name, o.netns[0] ? " in " : "", o.netns, o.what);
	napi_value result, value;
	napi_create_object(env, &result);
	set_property(env, result, "fd", make_int(env, o.fd));
	napi_create_string_utf8(env, o.name, NAPI_AUTO_LENGTH, &value);
	set_property(env, result, "name", value);
	set_property(env, result, "vnet", make_int(env, o.vnet));
	set_property(env, result, "offloads", make_int(env, (int)o.offloads));
	napi_get_boolean(env, o.existed, &value);
	set_property(env, result, "existed", value);
	return result;
}

/* tapPersist(fd, persist: boolean): void – a TAP that does not persist goes when its last queue is closed. */
napi_value tap_persist(napi_env env, napi_callback_info info)
{
	napi_value args[2];
	int fd;
	bool persist = false;
	if (!arguments(env, info, 2, args, "tapPersist") || !get_int(env, args[0], &fd)) return NULL;
	napi_get_value_bool(env, args[1], &persist);
	if (ioctl(fd, TUNSETPERSIST, persist ? 1 : 0) < 0) return throw_errno(env, errno, "cannot change TAP persistence");
	return NULL;
}

/*
 * tapRead(fd, top, max, before, capacity): number
 * Reads up to `max` frames into the free large slots below `top` of the free stack, each from `before` bytes
 * in front of the slot's `off`; sets len to the bytes read. Returns how many, or -errno when none was read.
 */
napi_value tap_read(napi_env env, napi_callback_info info)
{
	napi_value args[5];
	int fd;
	uint32_t top, max, before, capacity;
	if (!arguments(env, info, 5, args, "tapRead")) return NULL;
	if (!get_int(env, args[0], &fd) || !get_u32(env, args[1], &top) || !get_u32(env, args[2], &max) ||
	    !get_u32(env, args[3], &before) || !get_u32(env, args[4], &capacity))
		return NULL;
	const struct weft *weft = weft_of(env);
	if (top > weft->large || max > top) return make_int(env, -EFAULT);
	uint32_t count = 0;
	for (; count < max; count++) {
		uint32_t frame = weft->free_large[top - 1 - count];
		if (frame >= weft->frames || weft->off[frame] < before || !in_memory(weft, weft->off[frame] - before, capacity + before))
			return make_int(env, count ? (int)count : -EFAULT);
		ssize_t got = read(fd, weft->memory + weft->off[frame] - before, capacity + before);
		if (got <= 0) {
			if (count == 0) return make_int(env, got < 0 && errno != EAGAIN ? -errno : 0);
			break;
		}
		weft->len[frame] = (uint32_t)got;
	}
	return make_int(env, (int)count);
}

/*
 * tapWrite(fd, frames: Uint32Array, count, before, failures: Uint32Array): number
 * Writes each frame with `before` bytes in front of it. A frame the kernel refuses is skipped and counted in
 * failures: 0 no room, 1 interface down, 2 bad header, 3 anything else. Returns how many were written.
 */
napi_value tap_write(napi_env env, napi_callback_info info)
{
	napi_value args[5];
	int fd;
	uint32_t *frames, *failures, count, before;
	size_t frames_length, failures_length;
	if (!arguments(env, info, 5, args, "tapWrite")) return NULL;
	if (!get_int(env, args[0], &fd) || !get_words(env, args[1], &frames, &frames_length) || !get_u32(env, args[2], &count) ||
	    !get_u32(env, args[3], &before) || !get_words(env, args[4], &failures, &failures_length))
		return NULL;
	if (count > frames_length || failures_length < 4) return throw_usage(env, "tapWrite: an array is too short");
	const struct weft *weft = weft_of(env);
	int sent = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t frame = frames[i];
		if (frame >= weft->frames || weft->off[frame] < before ||
		    !in_memory(weft, weft->off[frame] - before, weft->len[frame] + before)) {
			failures[3]++;
			continue;
		}
		ssize_t put = write(fd, weft->memory + weft->off[frame] - before, weft->len[frame] + before);
		if (put >= 0) sent++;
		else if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) failures[0]++;
		else if (errno == EIO || errno == ENETDOWN || errno == EBADFD) failures[1]++;
		else if (errno == EINVAL) failures[2]++;
		else failures[3]++;
	}
	return make_int(env, sent);
}
