/** Somebody asked for a peer that there is not. Apart from the rest, which loads the addon. */
export class UnknownPeer extends Error {}
