"""Replies that are bound to their sender, whoever carries them.

Flower takes a reply from any node for any other's. So a site signs what it answers: the run, the
message that it answers, and all of the content.
"""

from flwr.app import ConfigRecord, Message

from lepton_common.identity.keys import SigningKey, verify

_RECORD, _FIELD, _DOMAIN = "sender", "signature", b"lepton/reply/v1"


def sign_reply(reply: Message, key: SigningKey) -> None:
    """Puts the site's signature into a reply that has content."""
    if reply.has_content():
        signed = key.sign(_bytes(reply))
        reply.content[_RECORD] = ConfigRecord({_FIELD: signed})


def take_signature(reply: Message, public_key: str) -> bool:
    """Takes the signature out of a reply with content, and says whether it is the key's."""
    # Not by `config_records`, which would hold the reply until Python looks for circles.
    record = reply.content.get(_RECORD)
    if not isinstance(record, ConfigRecord):
        return False
    signature = record.get(_FIELD)
    del reply.content[_RECORD]
    if not isinstance(signature, bytes) or len(record) != 1:
        return False
    return verify(public_key, signature, _bytes(reply))


def _bytes(reply: Message) -> bytes:
    metadata = reply.metadata
    parts = (str(metadata.run_id), metadata.reply_to_message_id, reply.content.object_id)
    return b"\0".join([_DOMAIN, *(part.encode() for part in parts)])
