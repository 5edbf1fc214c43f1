import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SOURCE_UNSPECIFIED: _ClassVar[Source]
    SOURCE_HASH_TABLES: _ClassVar[Source]
    SOURCE_LIVE: _ClassVar[Source]
SOURCE_UNSPECIFIED: Source
SOURCE_HASH_TABLES: Source
SOURCE_LIVE: Source

class Query(_message.Message):
    __slots__ = ("image", "embedding", "image_id")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    embedding: Embedding
    image_id: str
    def __init__(self, image: _Optional[bytes] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., image_id: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("float32",)
    FLOAT32_FIELD_NUMBER: _ClassVar[int]
    float32: bytes
    def __init__(self, float32: _Optional[bytes] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("query", "k", "min_score")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    query: Query
    k: int
    min_score: float
    def __init__(self, query: _Optional[_Union[Query, _Mapping]] = ..., k: _Optional[int] = ..., min_score: _Optional[float] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("matches", "generation_id", "num_candidates")
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    matches: _containers.RepeatedCompositeFieldContainer[Match]
    generation_id: str
    num_candidates: int
    def __init__(self, matches: _Optional[_Iterable[_Union[Match, _Mapping]]] = ..., generation_id: _Optional[str] = ..., num_candidates: _Optional[int] = ...) -> None: ...

class Match(_message.Message):
    __slots__ = ("image_id", "score", "similarity", "shared_terms", "source", "canonical_id", "by_view")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    SHARED_TERMS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_ID_FIELD_NUMBER: _ClassVar[int]
    BY_VIEW_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    score: float
    similarity: float
    shared_terms: int
    source: Source
    canonical_id: str
    by_view: bool
    def __init__(self, image_id: _Optional[str] = ..., score: _Optional[float] = ..., similarity: _Optional[float] = ..., shared_terms: _Optional[int] = ..., source: _Optional[_Union[Source, str]] = ..., canonical_id: _Optional[str] = ..., by_view: _Optional[bool] = ...) -> None: ...

class LookupStreamResponse(_message.Message):
    __slots__ = ("response", "failure")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    response: LookupResponse
    failure: Failure
    def __init__(self, response: _Optional[_Union[LookupResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("image_id", "query")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    query: Query
    def __init__(self, image_id: _Optional[str] = ..., query: _Optional[_Union[Query, _Mapping]] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("canonical_id", "was_known")
    CANONICAL_ID_FIELD_NUMBER: _ClassVar[int]
    WAS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    canonical_id: str
    was_known: bool
    def __init__(self, canonical_id: _Optional[str] = ..., was_known: _Optional[bool] = ...) -> None: ...

class LookupOrRegisterRequest(_message.Message):
    __slots__ = ("image_id", "query", "k", "min_score")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    query: Query
    k: int
    min_score: float
    def __init__(self, image_id: _Optional[str] = ..., query: _Optional[_Union[Query, _Mapping]] = ..., k: _Optional[int] = ..., min_score: _Optional[float] = ...) -> None: ...

class LookupOrRegisterResponse(_message.Message):
    __slots__ = ("registered", "matches", "canonical_id", "generation_id")
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    registered: bool
    matches: _containers.RepeatedCompositeFieldContainer[Match]
    canonical_id: str
    generation_id: str
    def __init__(self, registered: _Optional[bool] = ..., matches: _Optional[_Iterable[_Union[Match, _Mapping]]] = ..., canonical_id: _Optional[str] = ..., generation_id: _Optional[str] = ...) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ("was_known",)
    WAS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    was_known: bool
    def __init__(self, was_known: _Optional[bool] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ("image_id", "page_size", "page_token")
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    page_size: int
    page_token: str
    def __init__(self, image_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("canonical_id", "image_ids", "size", "next_page_token")
    CANONICAL_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_IDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    canonical_id: str
    image_ids: _containers.RepeatedScalarFieldContainer[str]
    size: int
    next_page_token: str
    def __init__(self, canonical_id: _Optional[str] = ..., image_ids: _Optional[_Iterable[str]] = ..., size: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("version", "generation", "num_live", "num_removed", "embedding_only", "uptime_s", "thorough")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NUM_LIVE_FIELD_NUMBER: _ClassVar[int]
    NUM_REMOVED_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_ONLY_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    THOROUGH_FIELD_NUMBER: _ClassVar[int]
    version: str
    generation: Generation
    num_live: int
    num_removed: int
    embedding_only: bool
    uptime_s: float
    thorough: bool
    def __init__(self, version: _Optional[str] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., num_live: _Optional[int] = ..., num_removed: _Optional[int] = ..., embedding_only: _Optional[bool] = ..., uptime_s: _Optional[float] = ..., thorough: _Optional[bool] = ...) -> None: ...

class Generation(_message.Message):
    __slots__ = ("generation_id", "created_at", "num_docs", "dim", "embedder_digest", "min_score", "num_views")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NUM_DOCS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    EMBEDDER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    NUM_VIEWS_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    created_at: _timestamp_pb2.Timestamp
    num_docs: int
    dim: int
    embedder_digest: str
    min_score: float
    num_views: int
    def __init__(self, generation_id: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., num_docs: _Optional[int] = ..., dim: _Optional[int] = ..., embedder_digest: _Optional[str] = ..., min_score: _Optional[float] = ..., num_views: _Optional[int] = ...) -> None: ...

class ListGenerationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListGenerationsResponse(_message.Message):
    __slots__ = ("generations",)
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedCompositeFieldContainer[GenerationEntry]
    def __init__(self, generations: _Optional[_Iterable[_Union[GenerationEntry, _Mapping]]] = ...) -> None: ...

class GenerationEntry(_message.Message):
    __slots__ = ("generation_id", "is_current")
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    IS_CURRENT_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    is_current: bool
    def __init__(self, generation_id: _Optional[str] = ..., is_current: _Optional[bool] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("generation_id",)
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    generation_id: str
    def __init__(self, generation_id: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PromoteResponse(_message.Message):
    __slots__ = ("generation", "previous_generation_id")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    previous_generation_id: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., previous_generation_id: _Optional[str] = ...) -> None: ...
