using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing.Mcore;

/// <summary>A rectangular piece of a tensor of Megatron-LM, and where its archive lies.</summary>
/// <param name="Offset">Start in the tensor, per dimension.</param>
/// <param name="Shape">Extent, per dimension.</param>
/// <param name="File">File of the folder.</param>
/// <param name="Begin">First byte of the archive in the file.</param>
/// <param name="SizeBytes">Bytes of the archive.</param>
internal sealed record DcpChunk(long[] Offset, long[] Shape, string File, long Begin, long SizeBytes);

/// <summary>A tensor of Megatron-LM.</summary>
internal sealed record DcpTensor(string Key, SafetensorsDType DType, long[] Shape, IReadOnlyList<DcpChunk> Chunks);

/// <summary>
/// The file <c>.metadata</c> of a <c>torch_dist</c> folder: which tensors there are and where their pieces lie. It is a pickle of
/// <c>torch.distributed.checkpoint.metadata.Metadata</c>, read as data only.
/// </summary>
internal static class DcpMetadata
{
    /// <summary>Name of the file.</summary>
    public const string FileName = ".metadata";

    private const long FileBytesMax = 256L << 20;
    private const string Metadata = "torch.distributed.checkpoint.metadata.", Planner = "torch.distributed.checkpoint.planner.", Strategy = "megatron.core.dist_checkpointing.strategies.torch.";

    private static readonly HashSet<string> known = new(StringComparer.Ordinal)
    {
        Metadata + "Metadata", Metadata + "MetadataIndex", Metadata + "TensorStorageMetadata", Metadata + "BytesStorageMetadata", Metadata + "ChunkStorageMetadata",
        Metadata + "TensorProperties", Metadata + "_MEM_FORMAT_ENCODING", Metadata + "StorageMeta", "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.distributed._shard.sharded_tensor.metadata.TensorProperties", "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        Planner + "SavePlan", Planner + "WriteItem", Planner + "WriteItemType", Planner + "TensorWriteData", Planner + "BytesIOWriteData",
        Strategy + "MCoreMetadata", Strategy + "MCoreSavePlan", "torch.Size", "torch.serialization._get_layout", "collections.OrderedDict",
        "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    };

    private static readonly Dictionary<string, SafetensorsDType> types = new(StringComparer.Ordinal)
    {
        ["bfloat16"] = SafetensorsDType.BF16, ["float16"] = SafetensorsDType.F16, ["half"] = SafetensorsDType.F16, ["float32"] = SafetensorsDType.F32,
        ["float"] = SafetensorsDType.F32, ["float64"] = SafetensorsDType.F64, ["double"] = SafetensorsDType.F64, ["uint8"] = SafetensorsDType.U8,
        ["int8"] = SafetensorsDType.I8, ["int16"] = SafetensorsDType.I16, ["int32"] = SafetensorsDType.I32, ["int64"] = SafetensorsDType.I64,
        ["bool"] = SafetensorsDType.BOOL, ["float8_e4m3fn"] = SafetensorsDType.F8_E4M3, ["float8_e5m2"] = SafetensorsDType.F8_E5M2,
    };

    static DcpMetadata() => known.UnionWith(types.Keys.Select(name => $"torch.{name}"));

    /// <summary>Reads the file.</summary>
    /// <exception cref="ConfigException">MCORE001 it is missing or too large; MCORE002, MCORE003 its pickle is refused; MCORE004 its content is.</exception>
    public static IReadOnlyDictionary<string, DcpTensor> Read(string folder)
    {
        var path = Path.Combine(folder, FileName);
        var info = new FileInfo(path);
        if (!info.Exists) throw new ConfigException("MCORE001", $"{folder} has no {FileName}; it is no torch_dist checkpoint of Megatron-LM, or it was copied without hidden files.");
        if (info.Length > FileBytesMax) throw new ConfigException("MCORE001", string.Create(CultureInfo.InvariantCulture, $"{path} has {info.Length} bytes, at most {FileBytesMax} are read."));
        return Parse(File.ReadAllBytes(path), path);
    }

    /// <summary>Parses the content of the file.</summary>
    public static IReadOnlyDictionary<string, DcpTensor> Parse(ReadOnlySpan<byte> bytes, string source)
    {
        if (PickleReader.Read(bytes, known, source) is not PickleObject { State: PickleDictionary root } || root["state_dict_metadata"] is not PickleDictionary described)
            throw Refuse(source, "it does not hold the metadata of a checkpoint");
        var places = Places(root["storage_data"], source);
        var tensors = new Dictionary<string, DcpTensor>(StringComparer.Ordinal);
        foreach (var (key, value) in described.Pairs)
        {
            if (key is not string name || value is not PickleObject item) throw Refuse(source, "an entry has no name");
            if (item.Target.Name != "TensorStorageMetadata") continue; // objects: they hold no weights
            if (!tensors.TryAdd(name, ReadTensor(name, item.State as PickleDictionary ?? throw Refuse(source, $"{Printable.Quote(name)} has no state"), places, source)))
                throw Refuse(source, $"{Printable.Quote(name)} is listed twice");
        }
        return tensors;
    }

    private static DcpTensor ReadTensor(string name, PickleDictionary state, Dictionary<string, (string File, long Begin, long SizeBytes)> places, string source)
    {
        var shape = Size(state["size"], source);
        var dtype = TypeOf(state["properties"], name, source);
        if (state["chunks"] is not List<object?> listed) throw Refuse(source, $"{Printable.Quote(name)} has no chunks");
        var chunks = new List<DcpChunk>();
        foreach (var entry in listed)
        {
            if (entry is not PickleObject { State: PickleDictionary chunk }) throw Refuse(source, $"a chunk of {Printable.Quote(name)} has no state");
            var (offset, extent) = (Size(chunk["offsets"], source), Size(chunk["sizes"], source));
            if (offset.Length != shape.Length || extent.Length != shape.Length || offset.Zip(extent, (start, count) => start + count).Zip(shape).Any(pair => pair.First > pair.Second))
                throw Refuse(source, $"a chunk of {Printable.Quote(name)} lies outside of it");
            if (!places.TryGetValue(IndexKey(name, offset), out var place)) throw Refuse(source, $"a chunk of {Printable.Quote(name)} lies in no file");
            chunks.Add(new DcpChunk(offset, extent, place.File, place.Begin, place.SizeBytes));
        }
        if (SliceCover.Problem(shape, chunks.Select(chunk => BlockRange.Whole(chunk.Offset, chunk.Shape))) is { } problem)
            throw Refuse(source, $"the chunks of {Printable.Quote(name)} do not cover it exactly once: {problem}");
        return new DcpTensor(name, dtype, shape, chunks);
    }

    private static Dictionary<string, (string File, long Begin, long SizeBytes)> Places(object? storage, string source)
    {
        var places = new Dictionary<string, (string, long, long)>(StringComparer.Ordinal);
        if (storage is not PickleDictionary pairs) throw Refuse(source, "it does not say where the data lie");
        foreach (var (key, value) in pairs.Pairs)
        {
            if (key is not PickleObject { State: PickleDictionary index } || index["fqn"] is not string name || value is not PickleObject { State: PickleDictionary place })
                throw Refuse(source, "a place has no name");
            if (place["relative_path"] is not string file || place["offset"] is not long begin || place["length"] is not long size || begin < 0 || size < 0)
                throw Refuse(source, $"the place of {Printable.Quote(name)} cannot be");
            if (!file.EndsWith(".distcp", StringComparison.Ordinal) || file.Length > 255 || file[0] == '.' || file.AsSpan().ContainsAny('/', '\\', '\0'))
                throw Refuse(source, $"it names the file {Printable.Quote(file)}; only plain names ending in .distcp, without a path, are allowed");
            if (place["transform_descriptors"] is not null) throw Refuse(source, $"{Printable.Quote(name)} was packed by a plug-in of PyTorch, which is not read");
            if (index["offset"] is { } offset) places[IndexKey(name, Size(offset, source))] = (file, begin, size);
        }
        return places;
    }

    private static SafetensorsDType TypeOf(object? properties, string name, string source)
    {
        // The state of TensorProperties is a tuple whose first value is the dtype.
        if (properties is PickleObject { State: object?[] { Length: > 0 } values } && values[0] is PickleTarget { Module: "torch" } dtype && types.TryGetValue(dtype.Name, out var type))
            return type;
        throw Refuse(source, $"the dtype of {Printable.Quote(name)} is unknown");
    }

    private static long[] Size(object? value, string source)
    {
        if (value is not PickleObject { Target: { Module: "torch", Name: "Size" }, Arguments: [var argument] }) throw Refuse(source, "a shape is missing");
        var extents = argument switch
        {
            object?[] tuple => tuple,
            List<object?> list => [.. list],
            _ => throw Refuse(source, "a shape is no list of numbers"),
        };
        if (extents.Length > 8 || extents.Any(extent => extent is not (long and >= 0 and <= 1L << 48))) throw Refuse(source, "a shape is no list of numbers");
        UInt128 count = 1;
        foreach (var extent in extents)
        {
            count *= (ulong)(long)(extent ?? 0L);
            if (count > 1UL << 60) throw Refuse(source, "a shape has too many elements");
        }
        return [.. extents.OfType<long>()];
    }

    private static string IndexKey(string name, long[] offset) => $"{name}@{string.Join(',', offset)}";

    private static ConfigException Refuse(string source, string what) => new("MCORE004", $"{source}: {what}; the checkpoint is damaged or of an unknown version.");
}
