/*
 * The underlay's UDP sockets: burst receive with source, TOS and GRO size, and burst send of frames that carry
 * their whole outer header, from which destination and TOS are read.
 */
#include "weft.h"
#include <arpa/inet.h>
#include <limits.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes of outer Ethernet, IP and UDP in front of the UDP payload. */
#define OUTER_V4 42
#define OUTER_V6 62
/* Segments of one UDP_SEGMENT message: UDP_MAX_SEGMENTS of kernels before 6.9. */
#define MAX_SEGMENTS 64
/* Payload of one message: below the 65,507 bytes an IPv4 datagram can hold. */
#define MAX_PAYLOAD 65000

static int set_int(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof value);
}

static const char *configure(int fd, int family, int ttl, bool raw, bool gro, bool share)
{
	if (share && set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0) return "share the port";
	/* The larger buffers need a right; without it the ordinary limit applies and drops are counted. */
	if (set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20) < 0) set_int(fd, SOL_SOCKET, SO_RCVBUF, 8 << 20);
	if (set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20) < 0) set_int(fd, SOL_SOCKET, SO_SNDBUF, 8 << 20);
	set_int(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
	if (gro) set_int(fd, SOL_UDP, UDP_GRO, 1);
	if (family == AF_INET6) {
		/* A raw socket has its number already and refuses; it hears only IPv6 anyway. */
		if (!raw && set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) < 0) return "restrict the socket to IPv6";
		if (set_int(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1) < 0) return "ask for the traffic class";
		if (set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO) < 0) return "forbid fragmentation";
		if (set_int(fd, IPPROTO_IPV6, IPV6_UNICAST_HOPS, ttl) < 0) return "set the hop limit";
		/* RFC 6935: a tunnel may use a zero checksum; accept it from peers that do. */
		set_int(fd, SOL_UDP, UDP_NO_CHECK6_RX, 1);
		return NULL;
	}
	if (set_int(fd, IPPROTO_IP, IP_RECVTOS, 1) < 0) return "ask for the type of service";
	if (set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO) < 0) return "set DF";
	if (set_int(fd, IPPROTO_IP, IP_TTL, ttl) < 0) return "set the TTL";
	return NULL;
}

/*
 * udpOpen({address, port, ttl, gro, share, protocol}): number – a non-blocking socket bound to address and port (0:
 * any). With a protocol it is a raw socket for that IP protocol: an IPv4 one then receives the IP header too.
 */
napi_value udp_open(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	char address[64];
	if (!arguments(env, info, 1, args, "udpOpen")) return NULL;
	if (!get_string_property(env, args[0], "address", address, sizeof address)) return NULL;
	int port = get_int_property(env, args[0], "port", 0);
	if (port < 0 || port > 65535) return throw_usage(env, "udpOpen: port is not in 0-65535");
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} local = {0};
	socklen_t size;
	if (inet_pton(AF_INET, address, &local.v4.sin_addr) == 1) {
		local.v4.sin_family = AF_INET;
		local.v4.sin_port = htons((uint16_t)port);
		size = sizeof local.v4;
	} else if (inet_pton(AF_INET6, address, &local.v6.sin6_addr) == 1) {
		local.v6.sin6_family = AF_INET6;
		local.v6.sin6_port = htons((uint16_t)port);
		size = sizeof local.v6;
	} else {
		return throw_usage(env, "udpOpen: address is not an IP address");
	}
	int protocol = get_int_property(env, args[0], "protocol", IPPROTO_UDP);
	int type = protocol == IPPROTO_UDP ? SOCK_DGRAM : SOCK_RAW;
	int fd = socket(local.any.sa_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol);
	if (fd < 0) return throw_errno(env, errno, type == SOCK_RAW ? "cannot open a raw socket" : "cannot open a UDP socket");
	const char *what = configure(fd, local.any.sa_family, get_int_property(env, args[0], "ttl", 64), type == SOCK_RAW,
				     get_bool_property(env, args[0], "gro", false), get_bool_property(env, args[0], "share", false));
	if (!what && bind(fd, &local.any, size) < 0) what = "bind";
	if (what) {
		int error = errno;
		close(fd);
		if (type == SOCK_RAW) return throw_errno(env, error, "%s, IP protocol %d: cannot %s", address, protocol, what);
		return throw_errno(env, error, "UDP %s port %d: cannot %s", address, port, what);
	}
	return make_int(env, fd);
}

/* One burst being received or sent. Per thread, since workers call at the same time; 256 entries is 60 KiB. */
struct control {
	_Alignas(struct cmsghdr) uint8_t bytes[CMSG_SPACE(sizeof(int)) * 3];
};
struct burst {
	struct mmsghdr messages[MAX_BATCH];
	struct iovec parts[MAX_BATCH];
	struct sockaddr_in6 names[MAX_BATCH];
	struct control controls[MAX_BATCH];
	uint16_t first[MAX_BATCH]; /* index of the message's first frame */
};
static _Thread_local struct burst burst;

/*
 * Fills meta and the 16-byte address of one received message. Meta is port, TOS, GRO segment size, and a word
 * whose bit 0 says truncated and whose other bits count what the socket's full queue has dropped so far.
 */
static void describe(const struct mmsghdr *message, uint8_t *address, uint32_t *meta)
{
	const struct sockaddr_in6 *v6 = message->msg_hdr.msg_name;
	const struct sockaddr_in *v4 = message->msg_hdr.msg_name;
	memset(address, 0, 16);
	if (v6->sin6_family == AF_INET6) memcpy(address, &v6->sin6_addr, 16);
	else memcpy(address, &v4->sin_addr, 4);
	meta[0] = ntohs(v6->sin6_port); /* at the same place in both */
	meta[1] = meta[2] = 0;
	meta[3] = message->msg_hdr.msg_flags & MSG_TRUNC ? 1 : 0;
	struct msghdr *header = (struct msghdr *)(uintptr_t)&message->msg_hdr;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		int value = 0;
		if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS) {
			meta[1] = *CMSG_DATA(c);
		} else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
			memcpy(&value, CMSG_DATA(c), sizeof value);
			meta[1] = (uint32_t)value;
		} else if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) {
			uint32_t dropped;
			memcpy(&dropped, CMSG_DATA(c), sizeof dropped);
			meta[3] |= dropped << 1;
		} else if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
			memcpy(&value, CMSG_DATA(c), sizeof value);
			meta[2] = (uint32_t)value;
		}
	}
}

/*
 * udpReceive(fd, top, max, before, capacity, addresses: Uint8Array, meta: Uint32Array): number
 * Receives into the free large slots below `top`, the UDP payload at `before` bytes in front of `off`; sets
 * len to the payload's length. addresses gets 16 bytes and meta four words a datagram (see describe).
 * Returns how many datagrams, 0 when none waits, -errno on failure.
 */
napi_value udp_receive(napi_env env, napi_callback_info info)
{
	napi_value args[7];
	int fd;
	uint32_t top, max, before, capacity, *meta;
	uint8_t *addresses;
	size_t addresses_length, meta_length;
	if (!arguments(env, info, 7, args, "udpReceive")) return NULL;
	if (!get_int(env, args[0], &fd) || !get_u32(env, args[1], &top) || !get_u32(env, args[2], &max) ||
	    !get_u32(env, args[3], &before) || !get_u32(env, args[4], &capacity) ||
	    !get_bytes(env, args[5], &addresses, &addresses_length) || !get_words(env, args[6], &meta, &meta_length))
		return NULL;
	const struct weft *weft = weft_of(env);
	if (max > MAX_BATCH) max = MAX_BATCH;
	if (top > weft->large || max > top) return make_int(env, -EFAULT);
	if (addresses_length < max * 16u || meta_length < max * 4u) return throw_usage(env, "udpReceive: an array is too short");
	for (uint32_t i = 0; i < max; i++) {
		uint32_t frame = weft->free_large[top - 1 - i];
		if (frame >= weft->frames || weft->off[frame] < before ||
		    !in_memory(weft, weft->off[frame] - before, capacity + before))
			return make_int(env, -EFAULT);
		burst.parts[i] = (struct iovec){weft->memory + weft->off[frame] - before, capacity + before};
		burst.messages[i].msg_hdr = (struct msghdr){
			.msg_name = &burst.names[i],
			.msg_namelen = sizeof burst.names[i],
			.msg_iov = &burst.parts[i],
			.msg_iovlen = 1,
			.msg_control = &burst.controls[i],
			.msg_controllen = sizeof burst.controls[i],
		};
	}
	int count = recvmmsg(fd, burst.messages, max, MSG_DONTWAIT, NULL);
	if (count < 0) return make_int(env, errno == EAGAIN || errno == EINTR ? 0 : -errno);
	for (int i = 0; i < count; i++) {
		weft->len[weft->free_large[top - 1 - (uint32_t)i]] = burst.messages[i].msg_len;
		describe(&burst.messages[i], addresses + i * 16, meta + i * 4);
	}
	return make_int(env, count);
}

static void add_control(struct msghdr *header, int level, int type, const void *data, size_t length)
{
	struct cmsghdr *c = (struct cmsghdr *)(void *)((uint8_t *)header->msg_control + header->msg_controllen);
	c->cmsg_level = level;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(length);
	memcpy(CMSG_DATA(c), data, length);
	header->msg_controllen += CMSG_SPACE(length);
}

/* Begins a message with the frame whose outer header is given; a raw one has no port. */
static void begin_message(unsigned m, unsigned frame_index, const uint8_t *outer, bool v6, bool raw)
{
	struct msghdr *header = &burst.messages[m].msg_hdr;
	*header = (struct msghdr){.msg_name = &burst.names[m], .msg_iov = &burst.parts[frame_index], .msg_control = &burst.controls[m]};
	int tos;
	if (v6) {
		struct sockaddr_in6 *name = &burst.names[m];
		*name = (struct sockaddr_in6){.sin6_family = AF_INET6};
		memcpy(&name->sin6_addr, outer + 38, 16);
		if (!raw) memcpy(&name->sin6_port, outer + 56, 2);
		header->msg_namelen = sizeof *name;
		tos = (outer[14] & 15) << 4 | outer[15] >> 4;
	} else {
		struct sockaddr_in *name = (struct sockaddr_in *)(void *)&burst.names[m];
		*name = (struct sockaddr_in){.sin_family = AF_INET};
		memcpy(&name->sin_addr, outer + 30, 4);
		if (!raw) memcpy(&name->sin_port, outer + 36, 2);
		header->msg_namelen = sizeof *name;
		tos = outer[15];
	}
	if (tos) add_control(header, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_TCLASS : IP_TOS, &tos, sizeof tos);
	burst.first[m] = (uint16_t)frame_index;
}

/* Same destination, port and TOS: 20 or 46 bytes of header that would make the same message. */
static bool same_flow(const uint8_t *a, const uint8_t *b, bool v6)
{
	if (v6) return memcmp(a + 14, b + 14, 2) == 0 && memcmp(a + 38, b + 38, 16) == 0 && memcmp(a + 56, b + 56, 2) == 0;
	return a[15] == b[15] && memcmp(a + 30, b + 30, 4) == 0 && memcmp(a + 36, b + 36, 2) == 0;
}

static void close_message(unsigned m, uint16_t segment)
{
	if (burst.messages[m].msg_hdr.msg_iovlen > 1)
		add_control(&burst.messages[m].msg_hdr, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment);
	if (burst.messages[m].msg_hdr.msg_controllen == 0) burst.messages[m].msg_hdr.msg_control = NULL;
}

/*
 * Lays frames into messages; with gso, runs of equal-sized frames (the last may be shorter) of one flow become
 * one message. Returns the number of messages, or -1 when a frame lies outside the memory.
 */
static int lay_out(const struct weft *weft, const uint32_t *frames, unsigned count, bool v6, bool raw, bool gso)
{
	const uint32_t outer_length = (v6 ? OUTER_V6 : OUTER_V4) - (raw ? 8 : 0);
	const uint8_t *previous = NULL;
	unsigned messages = 0;
	size_t segment = 0, total = 0;
	bool open = false;
	for (unsigned i = 0; i < count; i++) {
		uint32_t frame = frames[i];
		if (frame >= weft->frames || weft->len[frame] < outer_length || !in_memory(weft, weft->off[frame], weft->len[frame]))
			return -1;
		const uint8_t *outer = weft->memory + weft->off[frame];
		size_t length = weft->len[frame] - outer_length;
		burst.parts[i] = (struct iovec){weft->memory + weft->off[frame] + outer_length, length};
		if (open && length <= segment && total + length <= MAX_PAYLOAD && same_flow(previous, outer, v6) &&
		    burst.messages[messages - 1].msg_hdr.msg_iovlen < MAX_SEGMENTS) {
			burst.messages[messages - 1].msg_hdr.msg_iovlen++;
			total += length;
			if (length < segment) open = false;
			continue;
		}
		if (messages) close_message(messages - 1, (uint16_t)segment);
		begin_message(messages++, i, outer, v6, raw);
		burst.messages[messages - 1].msg_hdr.msg_iovlen = 1;
		previous = outer;
		segment = total = length;
		open = gso && !raw && length > 0;
	}
	if (messages) close_message(messages - 1, (uint16_t)segment);
	return (int)messages;
}

enum { NO_ROOM, UNREACHABLE, TOO_BIG, OTHER, GSO_REFUSED, FAILURES };

static void count_failure(uint32_t *failures, int error, uint32_t frames)
{
	switch (error) {
	case EAGAIN:
	case ENOBUFS:
	case ENOMEM: failures[NO_ROOM] += frames; break;
	case ENETUNREACH:
	case EHOSTUNREACH:
	case ENETDOWN:
	case EADDRNOTAVAIL: failures[UNREACHABLE] += frames; break;
	case EMSGSIZE: failures[TOO_BIG] += frames; break;
	default: failures[OTHER] += frames;
	}
}

/*
 * udpSend(fd, kind, frames: Uint32Array, count, gso: 0|1, failures: Uint32Array): number
 * Sends the UDP payload of each frame to the destination in its outer header; kind has bit 0 set over IPv6, bit 1
 * for a raw socket, which sends what comes behind the IP header. A message the kernel refuses is
 * skipped and counted in failures: 0 no room, 1 unreachable, 2 larger than the path's MTU, 3 anything else;
 * 4 counts messages refused for their segmentation, whose frames were then sent one by one.
 * Returns how many frames were sent.
 */
napi_value udp_send(napi_env env, napi_callback_info info)
{
	napi_value args[6];
	int fd;
	uint32_t kind, *frames, count, gso, *failures;
	size_t frames_length, failures_length;
	if (!arguments(env, info, 6, args, "udpSend")) return NULL;
	if (!get_int(env, args[0], &fd) || !get_u32(env, args[1], &kind) || !get_words(env, args[2], &frames, &frames_length) ||
	    !get_u32(env, args[3], &count) || !get_u32(env, args[4], &gso) || !get_words(env, args[5], &failures, &failures_length))
		return NULL;
	if (count > MAX_BATCH || count > frames_length || failures_length < FAILURES)
		return throw_usage(env, "udpSend: an array is too short or the batch too long");
	const struct weft *weft = weft_of(env);
	unsigned done = 0; /* frames of the batch behind us */
	int sent = 0;
	while (done < count) {
		int messages = lay_out(weft, frames + done, count - done, kind & 1, kind & 2, gso != 0);
		if (messages < 0) return make_int(env, -EFAULT);
		int m = 0;
		bool again = false;
		while (m < messages && !again) {
			int put = sendmmsg(fd, burst.messages + m, (unsigned)(messages - m), MSG_DONTWAIT);
			for (int i = 0; i < put; i++) sent += (int)burst.messages[m + i].msg_hdr.msg_iovlen;
			if (put > 0) {
				m += put;
				continue;
			}
			uint32_t lost = (uint32_t)burst.messages[m].msg_hdr.msg_iovlen;
			if (errno == EINTR) continue;
			if (lost > 1 && (errno == EIO || errno == EINVAL || errno == EMSGSIZE)) {
				/*
				 * The device or kernel cannot segment, or the segments are larger than the path's MTU, which the
				 * shorter last one need not be: the rest of the batch goes one by one.
				 */
				if (errno != EMSGSIZE) failures[GSO_REFUSED]++;
				gso = 0;
				again = true;
				done += burst.first[m];
			} else {
				count_failure(failures, errno, lost);
				m++;
			}
		}
		if (!again) break;
	}
	return make_int(env, sent);
}
