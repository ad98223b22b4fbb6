"""Both kinds of log are read as they were written: wrapped records, empty ones, those being written, broken ones."""

from __future__ import annotations

import pytest

from kvm_dbg.errors import CorruptError, SymbolNotFound
from kvm_dbg.kernel.linux.printk import for_each_log_record
from kvm_dbg.kernel.linux.printk_record import format_caller
from tests.writers.linux import World

RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)
STATE_SHIFT = 62
COUNT_BITS, SIZE_BITS = 4, 8
SIZE = 1 << SIZE_BITS
NO_LPOS, FAILED_LPOS = 3, 1


class Ring:
    """Writes a lock-free ring, as kernel/printk/printk_ringbuffer.c lays records out."""

    def __init__(self, *, exact_end: bool) -> None:
        world = self.world = World()
        self.exact_end = exact_end  # since 67e1b0052f6b a block may end exactly at the ring's end
        world.struct("atomic_long_t", counter="s64")
        world.struct("struct prb_data_blk_lpos", begin="u64", next="u64")
        world.struct("struct prb_desc", state_var="atomic_long_t", text_blk_lpos="struct prb_data_blk_lpos")
        world.struct("struct dev_printk_info", subsystem=("u8", 16), device=("u8", 48))
        world.struct(
            "struct printk_info", seq="u64", ts_nsec="u64", text_len="u16", facility="u8",
            flags=(5, "u8"), level=(3, "u8"), caller_id="u32", dev_info="struct dev_printk_info",
        )  # fmt: skip
        world.struct(
            "struct prb_desc_ring",
            count_bits="u32",
            descs="ptr",
            infos="ptr",
            head_id="atomic_long_t",
            tail_id="atomic_long_t",
        )
        world.struct("struct prb_data_ring", size_bits="u32", data="ptr")
        world.struct(
            "struct printk_ringbuffer", desc_ring="struct prb_desc_ring", text_data_ring="struct prb_data_ring"
        )
        world.enum("enum desc_state", desc_reserved=0, desc_committed=1, desc_finalized=2, desc_reusable=3)
        self.descs = world.allocate(24 << COUNT_BITS)
        self.infos = world.allocate(world.types.size_of("struct printk_info") << COUNT_BITS)
        self.data = world.allocate(SIZE, page=True)
        self.ring = world.place(
            "struct printk_ringbuffer",
            desc_ring__count_bits=COUNT_BITS,
            desc_ring__descs=self.descs,
            desc_ring__infos=self.infos,
            text_data_ring__size_bits=SIZE_BITS,
            text_data_ring__data=self.data,
        )
        world.words(world.allocate(8, symbol="prb"), self.ring)
        self.id = (1 << STATE_SHIFT) - 3  # ids wrap to 0 soon
        self.tail = self.id
        self.lpos = (1 << 64) - 2 * SIZE  # so do positions
        self.seq = 100
        self.live: list[int] = []  # where the blocks begin that are not overwritten

    def add(self, text: bytes, *, state: int = FINALIZED, lpos: int | None = None, **info: int | bytes) -> int:
        """Write one record and return where its block began."""
        begin = end = lpos or 0
        if lpos is None:
            need = 8 + -(-len(text) // 8) * 8
            last = self.lpos + need - (1 if self.exact_end else 0)
            wraps = self.lpos >> SIZE_BITS != last >> SIZE_BITS
            begin = self.lpos
            place = 0 if wraps else begin % SIZE
            end = ((begin >> SIZE_BITS) + 1 << SIZE_BITS) + need if wraps else begin + need
            self.world.words(self.data + place, self.id)
            self.world.write(self.data + place + 8, text)
            self.lpos = end
            self.live.append(begin)
            while end - self.live[0] > SIZE:  # the oldest record makes room
                self.live.pop(0)
                self.tail = (self.tail + 1) % (1 << STATE_SHIFT)
            begin, end = begin % (1 << 64), end % (1 << 64)
        index = self.id % (1 << COUNT_BITS)
        self.world.words(self.descs + 24 * index, state << STATE_SHIFT | self.id, begin, end)
        size = self.world.types.size_of("struct printk_info")
        fields: dict[str, int | bytes] = {"seq": self.seq, "text_len": len(text), **info}
        for name, value in fields.items():
            self.world.put(self.infos + size * index, "struct printk_info", name.replace("__", "."), value)
        self.world.put(self.ring, "struct printk_ringbuffer", "desc_ring.head_id.counter", self.id)
        self.world.put(self.ring, "struct printk_ringbuffer", "desc_ring.tail_id.counter", self.tail)
        self.id = (self.id + 1) % (1 << STATE_SHIFT)
        self.seq += 1
        return begin

    def texts(self) -> list[str]:
        return [record.text for record in for_each_log_record(self.world)]


@pytest.fixture(params=[False, True], ids=["never-at-the-end", "exactly-at-the-end"])
def ring(request: pytest.FixtureRequest) -> Ring:
    return Ring(exact_end=request.param)


def test_all_fields(ring: Ring) -> None:
    ring.add(
        b"hello\nworld \xff",
        ts_nsec=1_500_000_000,
        facility=3,
        flags=2,
        level=6,
        caller_id=0x80000004,
        dev_info__subsystem=b"pci",
        dev_info__device=b"+pci:0000:00:1f.2",
    )
    ring.add(b"again", caller_id=77)
    first, second = for_each_log_record(ring.world)
    assert (first.sequence, first.seconds, first.facility, first.level) == (100, 1.5, 3, 6)
    assert first.text == "hello\nworld \\xff"
    assert (first.caller, second.caller) == ("C4", "T77")
    assert first.dictionary == (("SUBSYSTEM", "pci"), ("DEVICE", "+pci:0000:00:1f.2"))
    assert (second.sequence, second.text, second.dictionary) == (101, "again", ())


@pytest.mark.parametrize("filler", range(1, 72))
def test_records_around_the_end_of_the_ring(ring: Ring, filler: int) -> None:
    """Whatever the place of the record before the end, all come out as they were written."""
    written = [b"x" * 60, b"y" * 60, b"z" * filler, b"around the end, a record of some length", b"after it"]
    places = [ring.add(text) for text in written]
    read = ring.texts()
    assert len(read) >= 3
    assert read == [text.decode() for text in written][-len(read) :]
    assert places[0] % SIZE == 0


def test_a_block_that_ends_exactly_at_the_end() -> None:
    ring = Ring(exact_end=True)
    for size in (56, 56, 56, 56):  # four times 64 bytes fill the ring: the last one's `next` has index 0
        ring.add(bytes([65 + size % 26]) * size)
    assert ring.lpos % SIZE == 0
    assert ring.texts() == [chr(65 + 56 % 26) * 56] * 4


def test_a_block_that_would_end_there_wraps_in_older_kernels() -> None:
    ring = Ring(exact_end=False)
    for letter in b"abc":
        ring.add(bytes([letter]) * 56)
    ring.add(b"d" * 56)
    assert ring.lpos % SIZE == 64
    assert ring.texts() == ["b" * 56, "c" * 56, "d" * 56]


def test_records_without_text(ring: Ring) -> None:
    ring.add(b"", lpos=NO_LPOS)
    ring.add(b"lost", lpos=FAILED_LPOS)
    ring.add(b"kept")
    assert ring.texts() == ["", "", "kept"]


def test_committed_and_finalized_records_count(ring: Ring) -> None:
    for text, state in ((b"a", FINALIZED), (b"b", REUSABLE), (b"c", COMMITTED), (b"d", RESERVED)):
        ring.add(text, state=state)
    assert ring.texts() == ["a", "c"]


def test_a_descriptor_that_was_taken_for_another_record(ring: Ring) -> None:
    ring.add(b"a")
    ring.add(b"b")
    index = ring.tail % (1 << COUNT_BITS)
    ring.world.words(ring.descs + 24 * index, FINALIZED << STATE_SHIFT | ring.tail - 16)
    assert ring.texts() == ["b"]


def test_text_is_never_longer_than_its_block(ring: Ring) -> None:
    ring.add(b"12345678", text_len=1000)
    ring.add(b"next")
    assert ring.texts() == ["12345678", "next"]


def test_a_missing_page_costs_the_text(ring: Ring) -> None:
    ring.add(b"gone")
    ring.world.missing = {(ring.data - 0xFFFF_8880_0000_0000) // 4096}
    (record,) = for_each_log_record(ring.world)
    assert record.sequence == 100
    assert "cannot be read" in record.text
    assert record.unread == ("text",)


def test_positions_that_cannot_be(ring: Ring) -> None:
    ring.add(b"", lpos=8)
    index = ring.tail % (1 << COUNT_BITS)
    ring.world.words(ring.descs + 24 * index + 8, 0x100, 0x100 + 4)
    ring.add(b"fine")
    first, second = for_each_log_record(ring.world)
    assert first.unread == ("text",)
    assert second.text == "fine"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("desc_ring.count_bits", 0),
        ("desc_ring.count_bits", 64),
        ("text_data_ring.size_bits", 60),
        ("desc_ring.tail_id.counter", 5),
    ],
)
def test_a_ring_that_cannot_be(ring: Ring, field: str, value: int) -> None:
    ring.add(b"a")
    ring.world.put(ring.ring, "struct printk_ringbuffer", field, value)
    with pytest.raises(CorruptError):
        ring.texts()


class Records:
    """Writes the buffer of kernels before v5.10."""

    HEADER = 16

    def __init__(self, size: int = 256) -> None:
        world = self.world = World()
        world.struct(
            "struct printk_log", ts_nsec="u64", len="u16", text_len="u16", dict_len="u16", facility="u8",
            flags=(5, "u8"), level=(3, "u8"),
        )  # fmt: skip
        assert world.types.size_of("struct printk_log") == self.HEADER
        self.size = size
        self.buffer = world.allocate(size, page=True)
        world.words(world.allocate(8, symbol="log_buf"), self.buffer)
        for name in ("log_buf_len", "log_first_idx", "log_next_idx", "log_first_seq", "log_next_seq"):
            world.allocate(8, symbol=name)
        self.set(log_buf_len=size)
        self.next = 0
        self.seq = 0

    def set(self, **values: int) -> None:
        for name, value in values.items():
            self.world.words(self.world.symbols.address(name), value)

    def add(self, text: bytes, dictionary: bytes = b"", **fields: int) -> None:
        length = -(-(self.HEADER + len(text) + len(dictionary)) // 8) * 8
        if self.next + length + self.HEADER > self.size:
            self.world.write(self.buffer + self.next, bytes(min(self.HEADER, self.size - self.next)))
            self.next = 0
        at = self.buffer + self.next
        values = {"len": length, "text_len": len(text), "dict_len": len(dictionary), **fields}
        for name, value in values.items():
            self.world.put(at, "struct printk_log", name, value)
        self.world.write(at + self.HEADER, text + dictionary)
        self.next += length
        self.seq += 1
        self.set(log_next_idx=self.next, log_next_seq=self.seq)


def test_old_records() -> None:
    log = Records()
    log.add(b"hello", ts_nsec=2_000_000_000, facility=1, level=5, flags=2)
    log.add(b"device", b"SUBSYSTEM=pci\0DEVICE=+pci:1", level=7)
    first, second = for_each_log_record(log.world)
    assert (first.sequence, first.seconds, first.facility, first.level, first.text) == (0, 2.0, 1, 5, "hello")
    assert (first.caller, first.dictionary) == (None, ())
    assert (second.sequence, second.level, second.text) == (1, 7, "device")
    assert second.dictionary == (("SUBSYSTEM", "pci"), ("DEVICE", "+pci:1"))


def test_old_records_that_wrap() -> None:
    log = Records()
    for _ in range(3):
        log.add(b"x" * 40)
    log.add(b"wrapped")
    log.set(log_first_idx=56, log_first_seq=1)
    assert [(record.sequence, record.text) for record in for_each_log_record(log.world)] == [
        (1, "x" * 40),
        (2, "x" * 40),
        (3, "wrapped"),
    ]


@pytest.mark.parametrize(("field", "value"), [("len", 8), ("len", 60000), ("text_len", 60000), ("dict_len", 300)])
def test_old_records_that_cannot_be(field: str, value: int) -> None:
    log = Records()
    log.add(b"good")
    log.add(b"bad", b"", **{field: value})
    walk = for_each_log_record(log.world)
    assert next(walk).text == "good"
    with pytest.raises(CorruptError):
        next(walk)


def test_an_old_buffer_that_cannot_be() -> None:
    log = Records()
    log.add(b"good")
    for values in ({"log_first_idx": 5000}, {"log_buf_len": 0}, {"log_next_seq": 1 << 40}):
        log.set(log_buf_len=256, log_first_idx=0, log_next_seq=1)
        log.set(**values)
        with pytest.raises(CorruptError):
            list(for_each_log_record(log.world))


def test_no_log() -> None:
    with pytest.raises(SymbolNotFound, match="log was not found"):
        list(for_each_log_record(World()))


def test_callers() -> None:
    assert [format_caller(caller) for caller in (1, 0x80000000, 0x8000000C)] == ["T1", "C0", "C12"]
