/* What both loops need: a TAP with a vnet header and every offload, opened in any network namespace. */
#ifndef WEFT_BENCH_TAP_H
#define WEFT_BENCH_TAP_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Newer than the headers of Debian 12. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#define TUN_F_UDP_TUNNEL_GSO 0x80
#define TUN_F_UDP_TUNNEL_GSO_CSUM 0x100

#define OFFLOADS (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_USO4 | TUN_F_USO6)
#define TUNNEL_OFFLOADS (OFFLOADS | TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM)

/* Frames moved from one device before the other gets its turn. */
#define BURST 64

/* struct virtio_net_hdr_v1 (virtio 1.2, 5.1.6), little endian. */
struct vnet {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset, num_buffers;
};

static void die(const char *what, const char *name)
{
	fprintf(stderr, "%s: %s: %s\n", name, what, strerror(errno));
	exit(1);
}

static void enter(int netns, const char *name)
{
	if (netns < 0 || setns(netns, CLONE_NEWNET) < 0) die("cannot enter the network namespace", name);
}

/* Opens a TAP in the namespace of the file `netns`, or in our own for NULL, and comes back. */
static int open_tap(const char *netns, const char *name, int vnet_size, unsigned offloads)
{
	int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (netns) {
		int there = open(netns, O_RDONLY | O_CLOEXEC);
		enter(there, netns);
		close(there);
	}
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) die("cannot open", "/dev/net/tun");
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
	if (ioctl(fd, TUNSETIFF, &request) < 0) die("cannot create the TAP", name);
	if (ioctl(fd, TUNSETVNETHDRSZ, &vnet_size) < 0) die("cannot set the vnet header size", name);
	if (ioctl(fd, TUNSETOFFLOAD, offloads) < 0) die("cannot set the offloads", name);
	enter(home, name);
	close(home);
	return fd;
}

#endif
