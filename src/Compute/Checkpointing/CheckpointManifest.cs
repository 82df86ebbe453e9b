using System.IO.Hashing;
using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// Content of <c>manifest.json</c>: what a checkpoint is, which files it has, and where each slice of the state lies. A folder without a
/// manifest that verifies is no checkpoint.
/// </summary>
public sealed record CheckpointManifest
{
    /// <summary>Name of the manifest in a checkpoint folder.</summary>
    public const string FileName = "manifest.json";

    /// <summary>The version that this code writes and the only one it reads.</summary>
    public const int CurrentVersion = 1;

    public required int FormatVersion { get; init; }
    public required string Writer { get; init; }
    public required DateTimeOffset CreatedUtc { get; init; }
    public required string SaveId { get; init; }
    public required RunFacts Run { get; init; }

    /// <summary><see cref="ConfigFacts.Hash"/> of the model's facts.</summary>
    public required string ModelConfigHash { get; init; }

    /// <summary>Every file of the folder but the manifest.</summary>
    public required IReadOnlyList<CheckpointFile> Files { get; init; }

    /// <summary>Every weight, whole, in the training dtype.</summary>
    public required IReadOnlyList<ManifestTensor> Tensors { get; init; }

    /// <summary>The training state, file by file; empty in a weights-only checkpoint.</summary>
    public required IReadOnlyList<ManifestStateFile> State { get; init; }

    /// <summary>XxHash128 over names and hashes of all weights: the same for every layout that wrote them. Null without weight files.</summary>
    public required string? WeightHash { get; init; }

    /// <summary>XxHash128 of the manifest that was newest when this one was committed; null for the first.</summary>
    public required string? PreviousManifestHash { get; init; }

    /// <summary>True when whole weights were written; false after <c>--save_safetensors false</c>, when the masters are the weights.</summary>
    public bool HasWeightFiles() => Tensors.Count > 0 && Tensors.All(tensor => tensor.File is not null);

    /// <summary>True when the checkpoint can continue a run, false when it holds weights only.</summary>
    public bool HasOptimizerState() => State.Count > 0;

    /// <summary>The bytes of the file: one JSON object whose last property is the XxHash128 of everything before it.</summary>
    public byte[] ToJson() => Seal(StrictJson.Write(this));

    /// <summary>Parses and checks a manifest: its form, its version, its names, and that slices cover every tensor exactly once.</summary>
    /// <param name="json">Bytes of the file, at most 64 MiB.</param>
    /// <param name="source">Named in error messages.</param>
    /// <exception cref="ConfigException">CKPT010 form, CKPT011 version, CKPT012 content, CKPT013 slices, CKPT014 hash.</exception>
    public static CheckpointManifest Parse(ReadOnlySpan<byte> json, string source)
    {
        if (json.Length > StrictJson.FileBytesMax) throw new ConfigException("CKPT010", $"{source} has {json.Length} bytes, at most {StrictJson.FileBytesMax} are read; the file is damaged.");
        return ParseContent(Unseal(json, source), source);
    }

    /// <summary>Adds the hash to a JSON object.</summary>
    internal static byte[] Seal(ReadOnlySpan<byte> json)
    {
        var content = json[..^1];
        return [.. content, .. SealStart, .. Encoding.ASCII.GetBytes(Convert.ToHexStringLower(XxHash128.Hash(content))), .. "\"}"u8];
    }

    /// <summary>Parses and checks the JSON object without its hash.</summary>
    internal static CheckpointManifest ParseContent(ReadOnlySpan<byte> json, string source)
    {
        var version = StrictJson.Parse<VersionOnly>(json, "CKPT010", source).FormatVersion;
        if (version != CurrentVersion)
            throw new ConfigException("CKPT011", $"{source} has format version {version}, this program reads {CurrentVersion}; use the program version that wrote it.");
        var manifest = StrictJson.Parse<CheckpointManifest>(json, "CKPT010", source);
        ManifestCheck.Run(manifest, source);
        return manifest;
    }

    private static ReadOnlySpan<byte> Unseal(ReadOnlySpan<byte> json, string source)
    {
        var contentBytes = json.Length - (SealStart.Length + 32 + 2);
        if (contentBytes < 1 || !json[contentBytes..].StartsWith(SealStart))
            throw new ConfigException("CKPT010", $"{source} does not end with its hash; it is torn or was edited.");
        var content = json[..contentBytes];
        if (!Seal([.. content, (byte)'}']).AsSpan().SequenceEqual(json))
            throw new ConfigException("CKPT014", $"{source} is not what was saved (hash differs); it is damaged or was edited.");
        return (byte[])[.. content, (byte)'}'];
    }

    private static ReadOnlySpan<byte> SealStart => ",\"manifestHash\":\""u8;

    private sealed class VersionOnly
    {
        public required int FormatVersion { get; init; }

        [System.Text.Json.Serialization.JsonExtensionData]
        public Dictionary<string, System.Text.Json.JsonElement>? Others { get; init; }
    }
}

/// <summary>A whole weight of the checkpoint.</summary>
/// <param name="Name">Hugging Face name.</param>
/// <param name="Shape">Global shape.</param>
/// <param name="DType">The training dtype: that in the file.</param>
/// <param name="File">File of the folder that holds it; null after <c>--save_safetensors false</c>.</param>
public sealed record ManifestTensor(string Name, long[] Shape, SafetensorsDType DType, string? File);

/// <summary>The slices that one rank wrote.</summary>
/// <param name="File">File of the folder, <c>state/rank-00000.safetensors</c>.</param>
/// <param name="Slices">Its slices, in file order.</param>
public sealed record ManifestStateFile(string File, IReadOnlyList<CheckpointSlice> Slices);

/// <summary>A slice of the training state on disk: a 1-D entry of a state file (DESIGN D11).</summary>
/// <param name="Entry">Name in the file.</param>
/// <param name="Tensor">Hugging Face name.</param>
/// <param name="Kind">What the values are.</param>
/// <param name="Offset">Start of the block in the tensor, per dimension.</param>
/// <param name="Shape">Extent of the block, per dimension.</param>
/// <param name="Begin">First element, row-major in the block.</param>
/// <param name="End">Element after the last.</param>
public sealed record CheckpointSlice(string Entry, string Tensor, StateKind Kind, long[] Offset, long[] Shape, long Begin, long End)
{
    internal BlockRange Range => new(Offset, Shape, Begin, End);
}

/// <summary>What one rank adds to the manifest; travels as JSON in its receipt.</summary>
/// <param name="Tensors">The weights, from rank 0 only.</param>
/// <param name="Written">Blocks of weights that this rank wrote: the commit checks that no element is missing.</param>
/// <param name="State">This rank's slices; null without state.</param>
/// <param name="Hashes">Hashes of the tensors in files that this rank wrote alone.</param>
internal sealed record ManifestPart(
    IReadOnlyList<ManifestTensor> Tensors, IReadOnlyList<WrittenBlock> Written, ManifestStateFile? State, IReadOnlyList<TensorHash> Hashes);

/// <summary>A block of a weight that a rank wrote.</summary>
internal sealed record WrittenBlock(string Tensor, long[] Offset, long[] Shape);
