using System.IO.Hashing;
using System.Text;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>Hash of one whole weight.</summary>
/// <param name="Tensor">Hugging Face name.</param>
/// <param name="XxHash128">Of its bytes in the file, in hexadecimal.</param>
internal sealed record TensorHash(string Tensor, string XxHash128);

/// <summary>A weight file with its own hash and those of its tensors.</summary>
internal sealed record HashedFile(CheckpointFile File, IReadOnlyList<TensorHash> Tensors);

/// <summary>
/// Hashes of weight files: of the file, and of each tensor in it. The hash of a model is made from the latter, so that it depends neither on the
/// layout nor on how the tensors are cut into files, and files can be hashed at the same time.
/// </summary>
internal static class WeightHashes
{
    // Small enough to be still in a core's cache when it is hashed for the second time.
    private const int SliceBytes = 1 << 20;

    /// <summary>Reads a file once and hashes it.</summary>
    /// <exception cref="ConfigException">It is no safetensors file.</exception>
    /// <exception cref="IOException">It cannot be read.</exception>
    public static HashedFile Hash(string path, string name)
    {
        using var file = SafetensorsFile.Open(path, strict: true);
        var (whole, hashes, buffer) = (new XxHash128(), new List<TensorHash>(), MakeBuffer(file.FileBytes));
        Append(file, 0, file.DataStart, buffer, whole, null);
        foreach (var entry in file.Tensors.Values.OrderBy(entry => entry.Begin).ThenBy(entry => entry.End))
        {
            var own = new XxHash128();
            Append(file, file.DataStart + entry.Begin, entry.SizeBytes, buffer, whole, own);
            hashes.Add(new TensorHash(entry.Name, Text(own)));
        }
        return new HashedFile(new CheckpointFile(name, file.FileBytes, Text(whole)), hashes);
    }

    /// <summary>Reads any file once and hashes it.</summary>
    /// <exception cref="IOException">It cannot be read.</exception>
    public static CheckpointFile HashPlain(string path, string name)
    {
        using var handle = File.OpenHandle(path, options: FileOptions.SequentialScan);
        var (hash, buffer, position) = (new XxHash128(), MakeBuffer(RandomAccess.GetLength(handle)), 0L);
        while (RandomAccess.Read(handle, buffer, position) is > 0 and var count)
        {
            hash.Append(buffer.AsSpan(0, count));
            position += count;
        }
        return new CheckpointFile(name, position, Text(hash));
    }

    /// <summary>The hash of a model: XxHash128 over names and hashes of its tensors in ordinal order of the names.</summary>
    public static string Combine(IEnumerable<TensorHash> tensors)
    {
        var hash = new XxHash128();
        foreach (var tensor in tensors.OrderBy(tensor => tensor.Tensor, StringComparer.Ordinal))
            hash.Append(Encoding.UTF8.GetBytes($"{tensor.Tensor}:{tensor.XxHash128}\n"));
        return Text(hash);
    }

    /// <summary>The hash as it stands in a manifest.</summary>
    public static string Text(XxHash128 hash) => Convert.ToHexStringLower(hash.GetCurrentHash());

    /// <summary>No larger than the file: a checkpoint has many small ones.</summary>
    private static byte[] MakeBuffer(long fileBytes) => new byte[Math.Clamp(fileBytes, 1, SliceBytes)];

    private static void Append(SafetensorsFile file, long position, long sizeBytes, byte[] buffer, XxHash128 whole, XxHash128? own)
    {
        for (var done = 0L; done < sizeBytes; done += buffer.Length)
        {
            var slice = buffer.AsSpan(0, (int)Math.Min(buffer.Length, sizeBytes - done));
            file.ReadRaw(slice, position + done);
            whole.Append(slice);
            own?.Append(slice);
        }
    }
}
