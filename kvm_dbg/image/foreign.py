"""Name what a file is when it is no memory image, and say what to do with it.

Facts of FreeBSD: textdump(4) (a tar of ddb.txt, config.txt, msgbuf.txt, panic.txt and version.txt, each where there is
one), sbin/savecore/savecore.c (the names of files), sys/sys/kerneldump.h (struct kerneldumpkey: the cipher, 32 bytes,
the size of the key, the key). What is encrypted looks like nothing: its name tells.
"""

from __future__ import annotations

import os

from kvm_dbg.image.source import Source

# magic bytes, their offset, what it is
_KNOWN: tuple[tuple[bytes, int, str], ...] = (
    (b"\x04\x22\x4d\x18", 0, "an lz4 file: decompress it first (lz4 -d)"),
    (b"\x89LZO\0\r\n\x1a\n", 0, "an lzop file: decompress it first (lzop -d)"),
    (b"AVML", 0, "a compressed AVML image: convert it first (avml-convert)"),
    (b"PK\x03\x04", 0, "a zip archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7z archive: unpack it first"),
    (b"ustar", 257, "a tar archive: unpack it first"),
    (b"!<arch>\n", 0, "an ar archive or Debian package"),
    (b"\xed\xab\xee\xdb", 0, "an RPM package"),
    (b"070701", 0, "a cpio archive: unpack it first"),
    (b"QFI\xfb", 0, "a qcow2 disk image, not memory"),
    (b"HdrS", 0x202, "a bootable kernel (bzImage), not a memory image"),
    (b"PAGEDU", 0, "a Windows crash dump"),
    (b"MZ", 0, "a Windows or EFI program (PE)"),
    (b"hibr", 0, "a Windows hibernation file"),
    (b"\x8f\x82\x1a\xa8", 0, "an LKCD dump"),
    (b"QEVM", 0, "a QEMU migration stream: take the dump with dump-guest-memory"),
    (b"LibvirtQemudSave", 0, "a libvirt save file: take the dump with `virsh dump --memory-only`"),
    (b"\x7fELF", 0, "an ELF file"),
    (b"%PDF", 0, "a PDF document"),
    (b"\x89PNG", 0, "a PNG picture"),
)
_TEXTDUMP = (b"ddb.txt\0", b"config.txt\0", b"msgbuf.txt\0", b"panic.txt\0", b"version.txt\0")
_CIPHERS = (1, 2)  # KERNELDUMP_ENC_AES_256_CBC, KERNELDUMP_ENC_CHACHA20
_KEY_HEAD = 37  # bytes in front of the encrypted key
_TEXT = frozenset(range(0x20, 0x7F)) | frozenset(b"\t\n\r\f\v")


def name_foreign(source: Source) -> str | None:
    """Return what the file is, as the end of "this is ...", None if its start is not known."""
    head = source.read(0, 1024)
    freebsd = _name_freebsd(source, head)
    if freebsd is not None:
        return freebsd
    for magic, offset, what in _KNOWN:
        if head[offset : offset + len(magic)] == magic:
            return what
    if head and _TEXT.issuperset(head):
        return "a text file"
    if not any(head) and len(head) == source.size:
        return "nothing but zeros"
    return None


def _name_freebsd(source: Source, head: bytes) -> str | None:
    """Return what the file is if savecore of FreeBSD made it from what is no plain dump, None if it did not."""
    if head[257:262] == b"ustar" and head.startswith(_TEXTDUMP):
        return (
            "a text dump of FreeBSD, which has no memory: unpack it (tar -xf), and read ddb.txt, msgbuf.txt, panic.txt"
        )
    name = os.path.basename(source.path)
    number = name.rpartition(".")[2]
    if name.startswith("vmcore_encrypted."):
        key = f"key.{number}" if number.isdigit() else "key.N"
        how = f"decryptcore -p PRIVATE-KEY -k {key} -e {name} -c vmcore.{number if number.isdigit() else 'N'}"
        return f"an encrypted dump of FreeBSD: decrypt it first ({how})"
    sizes = (int.from_bytes(head[33:_KEY_HEAD], "little"), int.from_bytes(head[33:_KEY_HEAD], "big"))
    if name.startswith("key.") and head and head[0] in _CIPHERS and source.size - _KEY_HEAD in sizes:
        return "the key of an encrypted dump of FreeBSD, for decryptcore"
    return None
