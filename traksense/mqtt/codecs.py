"""Which codec a connection gets: what `MQTT_READER` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from traksense.mqtt.paho_codec import PahoCodec

if TYPE_CHECKING:
    from traksense.config import Settings
    from traksense.mqtt.codec import Codec


class CodecFactory(Protocol):
    """Makes the codec for a connection."""

    def __call__(self, settings: Settings, generation: int) -> Codec:
        """A codec for this generation of the connection."""
        ...


def paho_codec(settings: Settings, generation: int) -> Codec:
    """The default codec."""
    return PahoCodec(
        client_id=settings.client_id,
        version=settings.mqtt_version,
        generation=generation,
        keepalive=int(settings.mqtt_keepalive),
        receive_maximum=settings.receive_maximum,
        session_expiry=int(settings.mqtt_session_expiry),
        username=settings.username,
        password=settings.password,
    )


def mqtt5_codec(settings: Settings, generation: int) -> Codec:
    """The codec of `MQTT_READER=mqtt5`; its package is an extra (`config` makes sure that it is there)."""
    from traksense.mqtt.mqtt5_codec import Mqtt5Codec

    return Mqtt5Codec(
        client_id=settings.client_id,
        generation=generation,
        keepalive=int(settings.mqtt_keepalive),
        receive_maximum=settings.receive_maximum,
        session_expiry=int(settings.mqtt_session_expiry),
        username=settings.username,
        password=settings.password,
    )


def codec_factory(settings: Settings) -> CodecFactory:
    """What `MQTT_READER` names."""
    return {"paho": paho_codec, "mqtt5": mqtt5_codec}[settings.mqtt_reader]
