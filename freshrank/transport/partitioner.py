"""Which partition a key belongs to: the rule of Kafka's default partitioner.

One rule for every transport, so that the records of one request meet in the same partition of every
topic, and a log recorded here replays on a cluster without moving anything.

Source: `org.apache.kafka.common.utils.Utils.murmur2` and `BuiltInPartitioner.partitionForKey`.
"""

_SEED = 0x9747B28C
_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """MurmurHash2 of `key` as Kafka computes it, as an unsigned 32-bit number.

    Example:
        >>> hex(murmur2(b"21"))  # -973932308 in Kafka's own test, as a signed number
        '0xc5f2f8ec'
    """
    n_bytes = len(key)
    h = (_SEED ^ n_bytes) & _MASK
    n_whole = n_bytes & ~3
    for i in range(0, n_whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if n_whole < n_bytes:
        h = (h ^ int.from_bytes(key[n_whole:], "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


def partition_of_key(key: bytes, n_partitions: int) -> int:
    """The partition, 0 … n_partitions - 1, of records with `key`."""
    if n_partitions == 1:
        return 0
    return (murmur2(key) & 0x7FFFFFFF) % n_partitions
