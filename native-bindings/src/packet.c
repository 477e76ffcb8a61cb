/*
 * Packet sockets: a router's own presence on an interface of the host, under a MAC of its own, with a vnet header in
 * front of each frame so that super-frames and unfinished checksums pass as they are.
 */
#include "weft.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Newer than the headers of Debian 12's C library. */
#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

static int set_int(int fd, int level, int option, int value)
{
	return setsockopt(fd, level, option, &value, sizeof value);
}

/*
 * Takes what is for our MAC, and broadcast and multicast of others; nothing tagged, whose tag the kernel has taken
 * off. What the host itself receives and sends is not even copied.
 */
static int filter(int fd, const uint8_t mac[6])
{
	const uint32_t high = (uint32_t)mac[0] << 24 | (uint32_t)mac[1] << 16 | (uint32_t)mac[2] << 8 | mac[3];
	const uint32_t low = (uint32_t)mac[4] << 8 | mac[5];
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 11),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 6), /* source: our own frames come back from some switches */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 2),
		BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 10),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low, 7, 0),
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 1, 4, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 3),
		BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 4),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	const struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

static const char *configure(int fd, int index, const uint8_t mac[6])
{
	if (set_int(fd, SOL_PACKET, PACKET_VNET_HDR, 1) < 0) return "ask for vnet headers";
	if (filter(fd, mac) < 0) return "attach a filter";
	if (set_int(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1) < 0) return "leave out what the host sends (Linux 4.20 can)";
	if (set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20) < 0) set_int(fd, SOL_SOCKET, SO_RCVBUF, 8 << 20);
	if (set_int(fd, SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20) < 0) set_int(fd, SOL_SOCKET, SO_SNDBUF, 8 << 20);
	set_int(fd, SOL_SOCKET, SO_RXQ_OVFL, 1);
	struct sockaddr_ll local = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = index,
	};
	if (bind(fd, (struct sockaddr *)&local, sizeof local) < 0) return "bind";
	struct packet_mreq member = {.mr_ifindex = index, .mr_type = PACKET_MR_UNICAST, .mr_alen = 6};
	memcpy(member.mr_address, mac, 6);
	if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &member, sizeof member) == 0) return NULL;
	member.mr_type = PACKET_MR_PROMISC;
	if (setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &member, sizeof member) == 0) return NULL;
	return "receive for another MAC";
}

/* Has the interface receive for a group; true when it does. */
static bool join(int fd, int index, const uint8_t group[6])
{
	struct packet_mreq member = {.mr_ifindex = index, .mr_type = PACKET_MR_MULTICAST, .mr_alen = 6};
	memcpy(member.mr_address, group, 6);
	return setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &member, sizeof member) == 0;
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
	unsigned octets[6];
	if (sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &octets[0], &octets[1], &octets[2], &octets[3], &octets[4], &octets[5]) != 6)
		return false;
	for (size_t i = 0; i < 6; i++) mac[i] = (uint8_t)octets[i];
	return true;
}

/*
 * packetOpen({interface, mac, group?}): number – a non-blocking packet socket that is a station of that MAC, and of a
 * group of stations if one is given.
 */
napi_value packet_open(napi_env env, napi_callback_info info)
{
	napi_value args[1];
	char name[IFNAMSIZ], text[18], group_text[18];
	uint8_t mac[6], group[6];
	if (!arguments(env, info, 1, args, "packetOpen")) return NULL;
	if (!get_string_property(env, args[0], "interface", name, sizeof name)) return NULL;
	if (!get_string_property(env, args[0], "mac", text, sizeof text)) return NULL;
	if (!get_string_property(env, args[0], "group", group_text, sizeof group_text)) return NULL;
	if (!parse_mac(text, mac)) return throw_usage(env, "packetOpen: mac is not a MAC");
	if (group_text[0] && !parse_mac(group_text, group)) return throw_usage(env, "packetOpen: group is not a MAC");
	/* Protocol 0: nothing comes in before everything is set. */
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) return throw_errno(env, errno, "cannot open a packet socket");
	struct ifreq request = {0};
	memcpy(request.ifr_name, name, sizeof request.ifr_name);
	const char *what = ioctl(fd, SIOCGIFINDEX, &request) < 0 ? "find the interface" : NULL;
	if (!what) what = configure(fd, request.ifr_ifindex, mac);
	if (!what && group_text[0] && !join(fd, request.ifr_ifindex, group)) what = "join a group";
	if (what) {
		int error = errno;
		close(fd);
		return throw_errno(env, error, "packet socket on %s: cannot %s", name, what);
	}
	return make_int(env, fd);
}

/* One burst; per thread, since workers call at the same time. */
struct control {
	_Alignas(struct cmsghdr) uint8_t bytes[CMSG_SPACE(sizeof(uint32_t))];
};
struct packet_burst {
	struct mmsghdr messages[MAX_BATCH];
	struct iovec parts[MAX_BATCH];
	struct control controls[MAX_BATCH];
};
static _Thread_local struct packet_burst packets;

/* What the socket's full queue has dropped so far; `before` when the message does not say. */
static uint32_t overflow_of(const struct mmsghdr *message, uint32_t before)
{
	struct msghdr *header = (struct msghdr *)(uintptr_t)&message->msg_hdr;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_RXQ_OVFL) memcpy(&before, CMSG_DATA(c), sizeof before);
	return before;
}

/*
 * packetReceive(fd, top, max, before, capacity, overflow: Uint32Array): number
 * Receives into the free large slots below `top`, each frame with its vnet header from `before` bytes in front of
 * `off`; sets len to the bytes received, 0 for a frame that did not fit, and overflow[0] to the running count of
 * what the full queue dropped. Returns how many, or -errno when none was received.
 */
napi_value packet_receive(napi_env env, napi_callback_info info)
{
	napi_value args[6];
	int fd;
	uint32_t top, max, before, capacity, *overflow;
	size_t overflow_length;
	if (!arguments(env, info, 6, args, "packetReceive")) return NULL;
	if (!get_int(env, args[0], &fd) || !get_u32(env, args[1], &top) || !get_u32(env, args[2], &max) ||
	    !get_u32(env, args[3], &before) || !get_u32(env, args[4], &capacity) ||
	    !get_words(env, args[5], &overflow, &overflow_length))
		return NULL;
	if (overflow_length < 1) return throw_usage(env, "packetReceive: an array is too short");
	const struct weft *weft = weft_of(env);
	if (max > MAX_BATCH) max = MAX_BATCH;
	if (top > weft->large || max > top) return make_int(env, -EFAULT);
	for (uint32_t i = 0; i < max; i++) {
		uint32_t frame = weft->free_large[top - 1 - i];
		if (frame >= weft->frames || weft->off[frame] < before ||
		    !in_memory(weft, weft->off[frame] - before, capacity + before))
			return make_int(env, -EFAULT);
		packets.parts[i] = (struct iovec){weft->memory + weft->off[frame] - before, capacity + before};
		packets.messages[i].msg_hdr = (struct msghdr){
			.msg_iov = &packets.parts[i],
			.msg_iovlen = 1,
			.msg_control = &packets.controls[i],
			.msg_controllen = sizeof packets.controls[i],
		};
	}
	int count = recvmmsg(fd, packets.messages, max, MSG_DONTWAIT, NULL);
	if (count < 0) return make_int(env, errno == EAGAIN || errno == EINTR ? 0 : -errno);
	for (int i = 0; i < count; i++) {
		const bool whole = !(packets.messages[i].msg_hdr.msg_flags & MSG_TRUNC);
		weft->len[weft->free_large[top - 1 - (uint32_t)i]] = whole ? packets.messages[i].msg_len : 0;
	}
	if (count > 0) overflow[0] = overflow_of(&packets.messages[count - 1], overflow[0]);
	return make_int(env, count);
}

/*
 * packetSend(fd, frames: Uint32Array, count, before, failures: Uint32Array): number
 * Sends each frame with the vnet header in the `before` bytes in front of it. A frame the kernel refuses is skipped
 * and counted in failures: 0 no room, 1 interface down, 2 bad header or too long, 3 anything else. Returns how many were sent.
 */
napi_value packet_send(napi_env env, napi_callback_info info)
{
	napi_value args[5];
	int fd;
	uint32_t *frames, *failures, count, before;
	size_t frames_length, failures_length;
	if (!arguments(env, info, 5, args, "packetSend")) return NULL;
	if (!get_int(env, args[0], &fd) || !get_words(env, args[1], &frames, &frames_length) || !get_u32(env, args[2], &count) ||
	    !get_u32(env, args[3], &before) || !get_words(env, args[4], &failures, &failures_length))
		return NULL;
	if (count > MAX_BATCH || count > frames_length || failures_length < 4)
		return throw_usage(env, "packetSend: an array is too short or the batch too long");
	const struct weft *weft = weft_of(env);
	for (uint32_t i = 0; i < count; i++) {
		uint32_t frame = frames[i];
		if (frame >= weft->frames || weft->off[frame] < before ||
		    !in_memory(weft, weft->off[frame] - before, weft->len[frame] + before))
			return make_int(env, -EFAULT);
		packets.parts[i] = (struct iovec){weft->memory + weft->off[frame] - before, weft->len[frame] + before};
		packets.messages[i].msg_hdr = (struct msghdr){.msg_iov = &packets.parts[i], .msg_iovlen = 1};
	}
	int sent = 0;
	for (uint32_t done = 0; done < count;) {
		int put = sendmmsg(fd, packets.messages + done, count - done, MSG_DONTWAIT);
		if (put > 0) {
			sent += put;
			done += (uint32_t)put;
			continue;
		}
		if (errno == EINTR) continue;
		if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM) failures[0]++;
		else if (errno == ENETDOWN || errno == ENXIO || errno == ENODEV) failures[1]++;
		else if (errno == EINVAL || errno == EMSGSIZE) failures[2]++;
		else failures[3]++;
		done++;
	}
	return make_int(env, sent);
}
