//! The rows. Whoever implements a word moves its row from refused to implemented, nowhere else.

use super::Operation::{self, *};
use super::Support::{self, *};
use super::{Level, Values};
use crate::error::Code::{self, AccessControlListNotSupported, InvalidArgument, InvalidStorageClass, NotImplemented};

/// One operation and how a request for it looks.
#[derive(Debug)]
pub struct OperationRow {
    /// The name in S3's API reference.
    pub name: &'static str,
    /// The HTTP method.
    pub method: &'static str,
    /// What the path names.
    pub level: Level,
    /// The subresource in the query.
    pub subresource: Option<&'static str>,
    /// A header that makes it this operation.
    pub header: Option<&'static str>,
    /// A query parameter and value that make it this operation.
    pub parameter: Option<(&'static str, &'static str)>,
    /// What the gateway does.
    pub support: Support,
    /// The operation, where it is answered.
    pub operation: Option<Operation>,
}

const fn done(
    operation: Operation,
    name: &'static str,
    method: &'static str,
    level: Level,
    subresource: Option<&'static str>,
) -> OperationRow {
    OperationRow {
        name,
        method,
        level,
        subresource,
        header: None,
        parameter: None,
        support: Implemented,
        operation: Some(operation),
    }
}

const fn refused(name: &'static str, method: &'static str, level: Level, subresource: &'static str) -> OperationRow {
    OperationRow {
        name,
        method,
        level,
        subresource: Some(subresource),
        header: None,
        parameter: None,
        support: Refused(NotImplemented),
        operation: None,
    }
}

const B: Level = Level::Bucket;
const O: Level = Level::Object;

/// Every operation of S3 that we know of.
pub const OPERATIONS: &[OperationRow] = &[
    done(ListBuckets, "ListBuckets", "GET", Level::Service, None),
    done(CreateBucket, "CreateBucket", "PUT", B, None),
    done(HeadBucket, "HeadBucket", "HEAD", B, None),
    done(DeleteBucket, "DeleteBucket", "DELETE", B, None),
    done(GetBucketLocation, "GetBucketLocation", "GET", B, Some("location")),
    done(GetBucketVersioning, "GetBucketVersioning", "GET", B, Some("versioning")),
    done(GetBucketAcl, "GetBucketAcl", "GET", B, Some("acl")),
    done(ListObjects, "ListObjects", "GET", B, None),
    OperationRow { parameter: Some(("list-type", "2")), ..done(ListObjectsV2, "ListObjectsV2", "GET", B, None) },
    done(ListMultipartUploads, "ListMultipartUploads", "GET", B, Some("uploads")),
    done(DeleteObjects, "DeleteObjects", "POST", B, Some("delete")),
    done(PutObject, "PutObject", "PUT", O, None),
    OperationRow { header: Some("x-amz-copy-source"), ..done(CopyObject, "CopyObject", "PUT", O, None) },
    done(GetObject, "GetObject", "GET", O, None),
    done(HeadObject, "HeadObject", "HEAD", O, None),
    done(DeleteObject, "DeleteObject", "DELETE", O, None),
    done(GetObjectAttributes, "GetObjectAttributes", "GET", O, Some("attributes")),
    done(GetObjectAcl, "GetObjectAcl", "GET", O, Some("acl")),
    done(GetObjectTagging, "GetObjectTagging", "GET", O, Some("tagging")),
    done(CreateMultipartUpload, "CreateMultipartUpload", "POST", O, Some("uploads")),
    done(UploadPart, "UploadPart", "PUT", O, Some("uploadId")),
    OperationRow {
        header: Some("x-amz-copy-source"),
        ..done(UploadPartCopy, "UploadPartCopy", "PUT", O, Some("uploadId"))
    },
    done(CompleteMultipartUpload, "CompleteMultipartUpload", "POST", O, Some("uploadId")),
    done(AbortMultipartUpload, "AbortMultipartUpload", "DELETE", O, Some("uploadId")),
    done(ListParts, "ListParts", "GET", O, Some("uploadId")),
    // Never, answered cleanly: reading shows that nothing is configured.
    done(GetBucketAccelerateConfiguration, "GetBucketAccelerateConfiguration", "GET", B, Some("accelerate")),
    refused("PutBucketAccelerateConfiguration", "PUT", B, "accelerate"),
    done(GetBucketConfiguration, "GetBucketAnalyticsConfiguration", "GET", B, Some("analytics")),
    done(GetBucketConfiguration, "GetBucketMetricsConfiguration", "GET", B, Some("metrics")),
    done(GetBucketConfiguration, "GetBucketIntelligentTieringConfiguration", "GET", B, Some("intelligent-tiering")),
    refused("PutBucketAnalyticsConfiguration", "PUT", B, "analytics"),
    refused("DeleteBucketAnalyticsConfiguration", "DELETE", B, "analytics"),
    refused("PutBucketMetricsConfiguration", "PUT", B, "metrics"),
    refused("DeleteBucketMetricsConfiguration", "DELETE", B, "metrics"),
    refused("PutBucketIntelligentTieringConfiguration", "PUT", B, "intelligent-tiering"),
    refused("DeleteBucketIntelligentTieringConfiguration", "DELETE", B, "intelligent-tiering"),
    // Later.
    refused("PutBucketAcl", "PUT", B, "acl"),
    refused("PutObjectAcl", "PUT", O, "acl"),
    refused("PutBucketVersioning", "PUT", B, "versioning"),
    refused("ListObjectVersions", "GET", B, "versions"),
    refused("PutObjectTagging", "PUT", O, "tagging"),
    refused("DeleteObjectTagging", "DELETE", O, "tagging"),
    refused("GetBucketTagging", "GET", B, "tagging"),
    refused("PutBucketTagging", "PUT", B, "tagging"),
    refused("DeleteBucketTagging", "DELETE", B, "tagging"),
    refused("GetBucketPolicy", "GET", B, "policy"),
    refused("PutBucketPolicy", "PUT", B, "policy"),
    refused("DeleteBucketPolicy", "DELETE", B, "policy"),
    refused("GetBucketPolicyStatus", "GET", B, "policyStatus"),
    refused("GetPublicAccessBlock", "GET", B, "publicAccessBlock"),
    refused("PutPublicAccessBlock", "PUT", B, "publicAccessBlock"),
    refused("DeletePublicAccessBlock", "DELETE", B, "publicAccessBlock"),
    refused("GetBucketEncryption", "GET", B, "encryption"),
    refused("PutBucketEncryption", "PUT", B, "encryption"),
    refused("DeleteBucketEncryption", "DELETE", B, "encryption"),
    refused("UpdateObjectEncryption", "PUT", O, "encryption"),
    refused("GetBucketOwnershipControls", "GET", B, "ownershipControls"),
    refused("PutBucketOwnershipControls", "PUT", B, "ownershipControls"),
    refused("DeleteBucketOwnershipControls", "DELETE", B, "ownershipControls"),
    refused("GetBucketLifecycleConfiguration", "GET", B, "lifecycle"),
    refused("PutBucketLifecycleConfiguration", "PUT", B, "lifecycle"),
    refused("DeleteBucketLifecycle", "DELETE", B, "lifecycle"),
    refused("GetBucketCors", "GET", B, "cors"),
    refused("PutBucketCors", "PUT", B, "cors"),
    refused("DeleteBucketCors", "DELETE", B, "cors"),
    refused("GetBucketWebsite", "GET", B, "website"),
    refused("PutBucketWebsite", "PUT", B, "website"),
    refused("DeleteBucketWebsite", "DELETE", B, "website"),
    refused("GetBucketLogging", "GET", B, "logging"),
    refused("PutBucketLogging", "PUT", B, "logging"),
    refused("GetBucketNotificationConfiguration", "GET", B, "notification"),
    refused("PutBucketNotificationConfiguration", "PUT", B, "notification"),
    refused("GetBucketReplication", "GET", B, "replication"),
    refused("PutBucketReplication", "PUT", B, "replication"),
    refused("DeleteBucketReplication", "DELETE", B, "replication"),
    refused("GetBucketRequestPayment", "GET", B, "requestPayment"),
    refused("PutBucketRequestPayment", "PUT", B, "requestPayment"),
    refused("GetBucketInventoryConfiguration", "GET", B, "inventory"),
    refused("PutBucketInventoryConfiguration", "PUT", B, "inventory"),
    refused("DeleteBucketInventoryConfiguration", "DELETE", B, "inventory"),
    refused("GetObjectLockConfiguration", "GET", B, "object-lock"),
    refused("PutObjectLockConfiguration", "PUT", B, "object-lock"),
    refused("GetObjectRetention", "GET", O, "retention"),
    refused("PutObjectRetention", "PUT", O, "retention"),
    refused("GetObjectLegalHold", "GET", O, "legal-hold"),
    refused("PutObjectLegalHold", "PUT", O, "legal-hold"),
    refused("GetObjectTorrent", "GET", O, "torrent"),
    refused("SelectObjectContent", "POST", O, "select"),
    refused("RestoreObject", "POST", O, "restore"),
    refused("RenameObject", "PUT", O, "renameObject"),
    refused("CreateSession", "GET", B, "session"),
    refused("GetBucketMetadataTableConfiguration", "GET", B, "metadataTable"),
    refused("CreateBucketMetadataTableConfiguration", "POST", B, "metadataTable"),
    refused("DeleteBucketMetadataTableConfiguration", "DELETE", B, "metadataTable"),
    refused("GetBucketMetadataConfiguration", "GET", B, "metadataConfiguration"),
    refused("CreateBucketMetadataConfiguration", "POST", B, "metadataConfiguration"),
    refused("DeleteBucketMetadataConfiguration", "DELETE", B, "metadataConfiguration"),
    refused("GetBucketAbac", "GET", B, "abac"),
    refused("PutBucketAbac", "PUT", B, "abac"),
    refused("Commit of many keys", "POST", B, "plinth-commit"),
    OperationRow { subresource: None, ..refused("PostObject", "POST", B, "") },
    OperationRow { subresource: None, ..refused("AssumeRole and its kin", "POST", Level::Service, "") },
    OperationRow { subresource: None, ..refused("Preflight", "OPTIONS", B, "") },
    OperationRow { subresource: None, ..refused("Preflight", "OPTIONS", O, "") },
];

/// Names in a query that make another operation of a request; two of them conflict.
pub const SUBRESOURCES: &[&str] = &[
    "abac",
    "accelerate",
    "acl",
    "analytics",
    "attributes",
    "cors",
    "delete",
    "encryption",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "location",
    "logging",
    "metadataConfiguration",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "plinth-commit",
    "policy",
    "policyStatus",
    "publicAccessBlock",
    "renameObject",
    "replication",
    "requestPayment",
    "restore",
    "retention",
    "select",
    "session",
    "tagging",
    "torrent",
    "uploadId",
    "uploads",
    "versioning",
    "versions",
    "website",
];

/// Returns whether any operation has this subresource on this kind of resource.
pub fn is_used_at(subresource: &str, level: Level) -> bool {
    OPERATIONS.iter().any(|row| row.level == level && row.subresource == Some(subresource))
}

/// Query parameters that carry a signature, in lower case.
pub const SIGNATURE_PARAMETERS: &[&str] = &[
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-signedheaders",
    "x-amz-signature",
    "x-amz-security-token",
];

/// One header, or with `*` at the end all that begin so.
#[derive(Debug)]
pub struct HeaderRow {
    /// The name in lower case.
    pub name: &'static str,
    /// The operations that know it; empty for all.
    pub operations: &'static [Operation],
    /// What the gateway does.
    pub support: Support,
    /// The values it may have.
    pub values: Values,
    /// Why accepting it promises nothing: everywhere for a harmless header, on the operations that are not listed for
    /// an implemented one. Without a reason, an implemented header is refused elsewhere.
    pub harmless_because: Option<&'static str>,
}

impl HeaderRow {
    /// Returns whether the operation gives the header a meaning.
    pub fn is_known_to(&self, operation: Operation) -> bool {
        self.operations.is_empty() || self.operations.contains(&operation)
    }
}

const fn header(name: &'static str, operations: &'static [Operation]) -> HeaderRow {
    HeaderRow { name, operations, support: Implemented, values: Values::Any, harmless_because: None }
}

const fn one_of(
    name: &'static str,
    operations: &'static [Operation],
    values: &'static [&'static str],
    code: Code,
) -> HeaderRow {
    HeaderRow { name, operations, support: Implemented, values: Values::OneOf(values, code), harmless_because: None }
}

const fn harmless(name: &'static str, because: &'static str) -> HeaderRow {
    HeaderRow { name, operations: &[], support: Harmless, values: Values::Any, harmless_because: Some(because) }
}

const fn refuses(name: &'static str, code: Code) -> HeaderRow {
    HeaderRow { name, operations: &[], support: Refused(code), values: Values::Any, harmless_because: None }
}

/// A header that clients also send where it has no meaning.
const fn elsewhere_harmless(row: HeaderRow, because: &'static str) -> HeaderRow {
    HeaderRow { harmless_because: Some(because), ..row }
}

const ALL: &[Operation] = &[];
const CREATES: &[Operation] = &[PutObject, CopyObject, CreateMultipartUpload];
const COPIES: &[Operation] = &[CopyObject, UploadPartCopy];
const READS: &[Operation] = &[GetObject, HeadObject];
const BODIES: &[Operation] = &[PutObject, UploadPart, CompleteMultipartUpload, DeleteObjects, CreateBucket];
const CONDITIONAL: &[Operation] =
    &[GetObject, HeadObject, PutObject, CopyObject, CompleteMultipartUpload, DeleteObject];
const MUTATIONS: &[Operation] = &[
    PutObject,
    CopyObject,
    DeleteObject,
    CreateMultipartUpload,
    UploadPart,
    UploadPartCopy,
    CompleteMultipartUpload,
    AbortMultipartUpload,
];

/// Every header that means something to S3.
pub const HEADERS: &[HeaderRow] = &[
    // Standard headers.
    header("if-match", CONDITIONAL),
    header("if-none-match", CONDITIONAL),
    header("if-modified-since", CONDITIONAL),
    header("if-unmodified-since", CONDITIONAL),
    header("range", ALL),
    header("if-range", ALL),
    refuses("content-range", NotImplemented),
    header("content-md5", ALL),
    header("content-type", ALL),
    header("cache-control", ALL),
    header("content-disposition", ALL),
    header("content-encoding", ALL),
    header("content-language", ALL),
    header("expires", ALL),
    // Signature and framing.
    header("x-amz-date", ALL),
    header("x-amz-content-sha256", ALL),
    header("x-amz-security-token", ALL),
    header("x-amz-decoded-content-length", BODIES),
    header("x-amz-trailer", BODIES),
    // AWS's C++ SDK (pyarrow) names the one version that this API ever had.
    one_of("x-amz-api-version", ALL, &["2006-03-01"], NotImplemented),
    // Checksums.
    header("x-amz-sdk-checksum-algorithm", ALL),
    header("x-amz-checksum-algorithm", &[CopyObject, CreateMultipartUpload]),
    header("x-amz-checksum-type", &[CreateMultipartUpload, CompleteMultipartUpload]),
    // The C++ SDK (pyarrow) sends it in lower case.
    one_of("x-amz-checksum-mode", READS, &["ENABLED", "enabled"], InvalidArgument),
    header("x-amz-checksum-crc32", BODIES),
    header("x-amz-checksum-crc32c", BODIES),
    header("x-amz-checksum-crc64nvme", BODIES),
    header("x-amz-checksum-sha1", BODIES),
    header("x-amz-checksum-sha256", BODIES),
    refuses("x-amz-checksum-sha512", Code::InvalidRequest),
    refuses("x-amz-checksum-md5", Code::InvalidRequest),
    refuses("x-amz-checksum-xxhash*", Code::InvalidRequest),
    // Objects.
    header("x-amz-meta-*", CREATES),
    one_of("x-amz-storage-class", CREATES, &["STANDARD"], InvalidStorageClass),
    one_of(
        "x-amz-acl",
        &[PutObject, CopyObject, CreateMultipartUpload, CreateBucket],
        &["private", "bucket-owner-full-control"],
        AccessControlListNotSupported,
    ),
    refuses("x-amz-grant-*", AccessControlListNotSupported),
    header("x-amz-client-token", MUTATIONS),
    header("x-amz-expected-bucket-owner", ALL),
    // Copies.
    header("x-amz-copy-source", COPIES),
    header("x-amz-copy-source-range", &[UploadPartCopy]),
    header("x-amz-copy-source-if-match", COPIES),
    header("x-amz-copy-source-if-none-match", COPIES),
    header("x-amz-copy-source-if-modified-since", COPIES),
    header("x-amz-copy-source-if-unmodified-since", COPIES),
    header("x-amz-source-expected-bucket-owner", COPIES),
    elsewhere_harmless(
        one_of("x-amz-metadata-directive", &[CopyObject], &["COPY", "REPLACE"], InvalidArgument),
        "says what a copy does with its source's metadata; without a source nothing is copied (s3fs-fuse, libs3)",
    ),
    elsewhere_harmless(
        one_of("x-amz-tagging-directive", &[CopyObject], &["COPY", "REPLACE"], InvalidArgument),
        "says what a copy does with its source's tags; without a source nothing is copied",
    ),
    refuses("x-amz-copy-source-server-side-encryption-*", NotImplemented),
    // Multipart and attributes.
    header("x-amz-mp-object-size", &[CompleteMultipartUpload]),
    header("x-amz-object-attributes", &[GetObjectAttributes]),
    header("x-amz-max-parts", &[GetObjectAttributes]),
    header("x-amz-part-number-marker", &[GetObjectAttributes]),
    // Buckets.
    one_of("x-amz-object-ownership", &[CreateBucket], &["BucketOwnerEnforced"], NotImplemented),
    one_of("x-amz-bucket-object-lock-enabled", &[CreateBucket], &["false", "False"], NotImplemented),
    // Harmless: accepting them promises nothing.
    harmless("x-amz-user-agent", "names the client"),
    harmless("x-amz-te", "offers response trailers, which need not be used"),
    harmless("x-amz-request-payer", "nobody is charged"),
    harmless("x-amz-optional-object-attributes", "asks for particulars of restored objects, of which there are none"),
    // Not built yet.
    refuses("x-amz-server-side-encryption*", NotImplemented),
    refuses("x-amz-tagging", NotImplemented),
    refuses("x-amz-object-lock-*", NotImplemented),
    refuses("x-amz-bypass-governance-retention", NotImplemented),
    refuses("x-amz-mfa", NotImplemented),
    refuses("x-amz-website-redirect-location", NotImplemented),
    refuses("x-amz-write-offset-bytes", NotImplemented),
    refuses("x-amz-rename-source*", NotImplemented),
    refuses("x-amz-if-match-*", NotImplemented),
    refuses("x-amz-confirm-remove-self-bucket-access", NotImplemented),
    refuses("x-amz-create-session-mode", NotImplemented),
    refuses("x-plinth-commit-version", NotImplemented),
    refuses("x-plinth-bucket-scope", NotImplemented),
];

/// One query parameter.
#[derive(Debug)]
pub struct ParameterRow {
    /// The name.
    pub name: &'static str,
    /// The operations that know it; empty for all.
    pub operations: &'static [Operation],
    /// What the gateway does.
    pub support: Support,
}

const fn parameter(name: &'static str, operations: &'static [Operation]) -> ParameterRow {
    ParameterRow { name, operations, support: Implemented }
}

const LISTS: &[Operation] = &[ListObjects, ListObjectsV2, ListMultipartUploads];
const UPLOADS: &[Operation] = &[UploadPart, UploadPartCopy, CompleteMultipartUpload, AbortMultipartUpload, ListParts];

/// Every query parameter of S3 that is not a subresource of its own.
pub const PARAMETERS: &[ParameterRow] = &[
    parameter("list-type", &[ListObjects, ListObjectsV2]),
    parameter("prefix", &[ListObjects, ListObjectsV2, ListMultipartUploads, ListBuckets]),
    parameter("delimiter", LISTS),
    parameter("encoding-type", &[ListObjects, ListObjectsV2, ListMultipartUploads, ListParts]),
    parameter("max-keys", &[ListObjects, ListObjectsV2]),
    parameter("marker", &[ListObjects]),
    parameter("continuation-token", &[ListObjectsV2, ListBuckets, GetBucketConfiguration]),
    parameter("start-after", &[ListObjectsV2]),
    parameter("fetch-owner", &[ListObjectsV2]),
    parameter("max-buckets", &[ListBuckets]),
    parameter("bucket-region", &[ListBuckets]),
    parameter("key-marker", &[ListMultipartUploads]),
    parameter("upload-id-marker", &[ListMultipartUploads]),
    parameter("max-uploads", &[ListMultipartUploads]),
    parameter("uploadId", UPLOADS),
    parameter("partNumber", &[UploadPart, UploadPartCopy, GetObject, HeadObject]),
    parameter("part-number-marker", &[ListParts]),
    parameter("max-parts", &[ListParts]),
    parameter("versionId", &[GetObject, HeadObject, DeleteObject, GetObjectAttributes, GetObjectAcl, GetObjectTagging]),
    parameter("response-content-type", READS),
    parameter("response-content-language", READS),
    parameter("response-expires", READS),
    parameter("response-cache-control", READS),
    parameter("response-content-disposition", READS),
    parameter("response-content-encoding", READS),
    parameter("id", &[GetBucketConfiguration]),
    ParameterRow { name: "x-id", operations: &[], support: Harmless },
    ParameterRow { name: "allow-unordered", operations: &[], support: Refused(NotImplemented) },
    ParameterRow { name: "version-id-marker", operations: &[], support: Refused(NotImplemented) },
];

/// One element of a request document, by its path below the root.
#[derive(Debug)]
pub struct ElementRow {
    /// Names joined with `/`.
    pub path: &'static str,
    /// What the gateway does.
    pub support: Support,
}

/// A request document.
#[derive(Debug)]
pub struct Document {
    /// The root element's name.
    pub root: &'static str,
    /// Its elements.
    pub elements: &'static [ElementRow],
}

const fn known(path: &'static str) -> ElementRow {
    ElementRow { path, support: Implemented }
}

const fn unknown(path: &'static str, code: Code) -> ElementRow {
    ElementRow { path, support: Refused(code) }
}

/// The body of CompleteMultipartUpload.
pub const COMPLETE: Document = Document {
    root: "CompleteMultipartUpload",
    elements: &[
        known("Part"),
        known("Part/PartNumber"),
        known("Part/ETag"),
        known("Part/ChecksumCRC32"),
        known("Part/ChecksumCRC32C"),
        known("Part/ChecksumCRC64NVME"),
        known("Part/ChecksumSHA1"),
        known("Part/ChecksumSHA256"),
        unknown("Part/ChecksumSHA512", Code::InvalidRequest),
        unknown("Part/ChecksumMD5", Code::InvalidRequest),
        unknown("Part/ChecksumXXHASH64", Code::InvalidRequest),
        unknown("Part/ChecksumXXHASH3", Code::InvalidRequest),
        unknown("Part/ChecksumXXHASH128", Code::InvalidRequest),
    ],
};

/// The body of DeleteObjects.
pub const DELETE: Document = Document {
    root: "Delete",
    elements: &[
        known("Quiet"),
        known("Object"),
        known("Object/Key"),
        known("Object/ETag"),
        known("Object/VersionId"),
        unknown("Object/LastModifiedTime", NotImplemented),
        unknown("Object/Size", NotImplemented),
    ],
};

/// The body of CreateBucket.
pub const CREATE_BUCKET: Document = Document {
    root: "CreateBucketConfiguration",
    elements: &[
        known("LocationConstraint"),
        unknown("Location", NotImplemented),
        unknown("Bucket", NotImplemented),
        unknown("Tags", NotImplemented),
    ],
};

/// All request documents.
pub const ELEMENTS: &[&Document] = &[&COMPLETE, &DELETE, &CREATE_BUCKET];
