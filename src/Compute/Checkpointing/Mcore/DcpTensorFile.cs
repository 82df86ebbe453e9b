using Megatron.Compute.Configuration;
using Microsoft.Win32.SafeHandles;

namespace Megatron.Compute.Checkpointing.Mcore;

/// <summary>Where the bytes of a chunk lie: found once in its archive, then read by position.</summary>
/// <param name="Position">First byte of the first element in the file.</param>
internal sealed record DcpData(SafeFileHandle Handle, long Position);

/// <summary>The <c>.distcp</c> files of a folder: archives of <c>torch.save</c>, one for each chunk, one after another.</summary>
internal sealed class DcpTensorFile(string folder) : IDisposable
{
    private const int PickleBytesMax = 64 << 10;

    private static readonly Dictionary<string, SafetensorsDType> storages = new(StringComparer.Ordinal)
    {
        ["BFloat16Storage"] = SafetensorsDType.BF16, ["HalfStorage"] = SafetensorsDType.F16, ["FloatStorage"] = SafetensorsDType.F32, ["DoubleStorage"] = SafetensorsDType.F64,
        ["ByteStorage"] = SafetensorsDType.U8, ["CharStorage"] = SafetensorsDType.I8, ["ShortStorage"] = SafetensorsDType.I16, ["IntStorage"] = SafetensorsDType.I32,
        ["LongStorage"] = SafetensorsDType.I64, ["BoolStorage"] = SafetensorsDType.BOOL,
    };

    private static readonly HashSet<string> known =
        [.. storages.Keys.Select(name => $"torch.{name}"), "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"];

    private readonly Dictionary<string, SafeFileHandle> handles = new(StringComparer.Ordinal);
    private readonly Dictionary<DcpChunk, DcpData> found = [];

    /// <summary>Finds the data of a chunk and checks that the archive holds the tensor that the metadata announce.</summary>
    /// <exception cref="ConfigException">MCORE001 a file is missing; MCORE002 to MCORE005 its archive is refused.</exception>
    public DcpData Locate(DcpTensor tensor, DcpChunk chunk)
    {
        if (found.TryGetValue(chunk, out var data)) return data;
        var (handle, source) = (Handle(chunk.File), Path.Combine(folder, chunk.File));
        if (chunk.SizeBytes > RandomAccess.GetLength(handle) - chunk.Begin) throw Refuse(source, tensor, "lies beyond the end of the file");
        var archive = new TorchArchive(handle, chunk.Begin, chunk.SizeBytes, source);
        if (archive.Has("byteorder") && !archive.ReadEntry("byteorder", 100).AsSpan().SequenceEqual("little"u8)) throw Refuse(source, tensor, "was written on a big-endian machine");
        var (key, first, count) = Describe(PickleReader.Read(archive.ReadEntry("data.pkl", PickleBytesMax), known, source), tensor, chunk, source);
        var (position, size) = archive.Find($"data/{key}");
        var elementBytes = tensor.DType.SizeBytes();
        if (first < 0 || count < 0 || (UInt128)(ulong)(first + count) * (uint)elementBytes > (ulong)size) throw Refuse(source, tensor, "is larger than its data");
        return found[chunk] = new DcpData(handle, position + first * elementBytes);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var handle in handles.Values) handle.Dispose();
    }

    // _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata]); storage = ("storage", type, key, device, count)
    private static (string Key, long First, long Count) Describe(object? value, DcpTensor tensor, DcpChunk chunk, string source)
    {
        if (value is not PickleObject { Target.Name: "_rebuild_tensor_v2", Arguments: [PicklePersistent { Id: object?[] id }, long first, object?[] size, object?[] stride, ..] }
            || id is not ["storage", PickleTarget type, string key, string, long])
            throw Refuse(source, tensor, "is no plain tensor");
        if (!storages.TryGetValue(type.Name, out var dtype) || dtype != tensor.DType) throw Refuse(source, tensor, $"has the type {type.Name} instead of {tensor.DType}");
        if (!size.OfType<long>().SequenceEqual(chunk.Shape) || size.Length != chunk.Shape.Length) throw Refuse(source, tensor, "has another shape than announced");
        var expected = 1L;
        for (var dimension = size.Length - 1; dimension >= 0; dimension--)
        {
            if (stride.Length != size.Length || stride[dimension] is not long step || (step != expected && chunk.Shape[dimension] > 1)) throw Refuse(source, tensor, "is not contiguous");
            expected *= Math.Max(1, chunk.Shape[dimension]);
        }
        if (key.Length is 0 or > 20 || !key.All(char.IsAsciiDigit)) throw Refuse(source, tensor, "has a storage without a number");
        return (key, first, chunk.Shape.Aggregate(1L, (product, extent) => product * extent));
    }

    private SafeFileHandle Handle(string name)
    {
        if (handles.TryGetValue(name, out var handle)) return handle;
        var path = Path.Combine(folder, name);
        if (!File.Exists(path)) throw new ConfigException("MCORE001", $"{path} is missing; copy the whole folder.");
        return handles[name] = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.Read, FileOptions.RandomAccess);
    }

    private static ConfigException Refuse(string source, DcpTensor tensor, string what) =>
        new("MCORE004", $"{source}: a chunk of {Printable.Quote(tensor.Key)} {what}; the checkpoint is damaged or of an unknown version.");
}
