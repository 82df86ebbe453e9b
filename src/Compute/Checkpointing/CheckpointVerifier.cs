using System.Globalization;
using System.IO.Hashing;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>How much of a checkpoint is read before it is trusted.</summary>
public enum CheckpointVerification
{
    /// <summary>Manifest, file set, lengths, headers and the hash of every file.</summary>
    Full,

    /// <summary>All but the hashes.</summary>
    Sizes,
}

/// <summary>Checks a checkpoint folder against its manifest, before anything of it is loaded.</summary>
internal static class CheckpointVerifier
{
    private const int ErrorsMax = 20;

    /// <summary>Verifies a folder.</summary>
    /// <exception cref="ConfigException">
    /// CKPT010 to CKPT013 the manifest; CKPT020 file set; CKPT021 lengths; CKPT022 hashes; CKPT023 headers; ST0xx a file is refused.
    /// </exception>
    public static CheckpointManifest Verify(string folder, CheckpointVerification level)
    {
        var path = Path.Combine(folder, CheckpointManifest.FileName);
        if (!File.Exists(path)) throw new ConfigException("CKPT010", $"{folder} has no {CheckpointManifest.FileName}; it is no complete checkpoint of this program.");
        var manifest = CheckpointManifest.Parse(StrictJson.ReadFile(path, "CKPT010"), path);
        ThrowIfAny(CompareFileSet(folder, manifest));
        ThrowIfAny(CompareLengths(folder, manifest));
        if (level == CheckpointVerification.Full) ThrowIfAny(CompareHashes(folder, manifest));
        ThrowIfAny(CompareHeaders(folder, manifest));
        return manifest;
    }

    /// <summary>Hashes a weight file, and adds its data without the header to <paramref name="weightHash"/>.</summary>
    /// <exception cref="IOException">The file cannot be read or is no safetensors file.</exception>
    public static CheckpointFile HashWeights(string path, string name, XxHash128 weightHash)
    {
        using var handle = File.OpenHandle(path, options: FileOptions.SequentialScan);
        var hash = new XxHash128();
        var buffer = new byte[TensorBytes.SliceBytes];
        var (position, dataStart) = (0L, 0L);
        while (RandomAccess.Read(handle, buffer, position) is > 0 and var count)
        {
            hash.Append(buffer.AsSpan(0, count));
            if (position == 0) dataStart = count >= 8 ? 8 + BitConverter.ToInt64(buffer) : long.MaxValue;
            var skipped = (int)Math.Clamp(dataStart - position, 0, count);
            weightHash.Append(buffer.AsSpan(skipped, count - skipped));
            position += count;
        }
        return new CheckpointFile(name, position, Convert.ToHexStringLower(hash.GetCurrentHash()));
    }

    private static IEnumerable<ConfigError> CompareFileSet(string folder, CheckpointManifest manifest)
    {
        var listed = manifest.Files.Select(file => file.Name).Append(CheckpointManifest.FileName).ToHashSet(StringComparer.Ordinal);
        var present = Directory.EnumerateFileSystemEntries(folder, "*", new EnumerationOptions { RecurseSubdirectories = true, AttributesToSkip = 0 })
            .Where(path => !IsStateFolder(folder, path)).Select(path => Path.GetRelativePath(folder, path)).ToHashSet(StringComparer.Ordinal);
        foreach (var name in listed.Except(present).Order(StringComparer.Ordinal))
            yield return new ConfigError("CKPT020", $"{folder}: the file {Printable.Quote(name)} is missing; restore the folder from a copy.");
        foreach (var name in present.Except(listed).Order(StringComparer.Ordinal))
            yield return new ConfigError("CKPT020", $"{folder}: the file {Printable.Quote(name)} does not belong to the checkpoint; move it elsewhere.");
        foreach (var name in present.Intersect(listed).Order(StringComparer.Ordinal))
            if (File.GetAttributes(Path.Combine(folder, name)).HasFlag(FileAttributes.ReparsePoint) || Directory.Exists(Path.Combine(folder, name)))
                yield return new ConfigError("CKPT020", $"{folder}: {Printable.Quote(name)} is a link or a folder instead of a file; restore the folder from a copy.");
    }

    private static bool IsStateFolder(string folder, string path) =>
        path == Path.Combine(folder, "state") && Directory.Exists(path) && !File.GetAttributes(path).HasFlag(FileAttributes.ReparsePoint);

    private static IEnumerable<ConfigError> CompareLengths(string folder, CheckpointManifest manifest)
    {
        foreach (var file in manifest.Files)
        {
            var length = new FileInfo(Path.Combine(folder, file.Name)).Length;
            if (length != file.SizeBytes)
                yield return new ConfigError("CKPT021", string.Create(CultureInfo.InvariantCulture, $"{folder}: {Printable.Quote(file.Name)} has {length} bytes instead of {file.SizeBytes}; it is torn, restore the folder from a copy."));
        }
    }

    private static IEnumerable<ConfigError> CompareHashes(string folder, CheckpointManifest manifest)
    {
        foreach (var file in manifest.Files)
            if (HashWeights(Path.Combine(folder, file.Name), file.Name, new XxHash128()).XxHash128 != file.XxHash128)
                yield return new ConfigError("CKPT022", $"{folder}: the content of {Printable.Quote(file.Name)} is not what was saved (hash differs); restore the folder from a copy.");
    }

    private static IEnumerable<ConfigError> CompareHeaders(string folder, CheckpointManifest manifest)
    {
        foreach (var group in manifest.Tensors.GroupBy(tensor => tensor.File, StringComparer.Ordinal))
        {
            using var file = SafetensorsFile.Open(Path.Combine(folder, group.Key), strict: true);
            var expected = group.ToList();
            if (file.Tensors.Count != expected.Count || expected.Any(tensor => !Matches(file, tensor.Name, tensor.DType, tensor.Shape)))
                yield return new ConfigError("CKPT023", $"{folder}: the tensors of {Printable.Quote(group.Key)} are not those of the manifest; restore the folder from a copy.");
        }
        foreach (var state in manifest.State)
        {
            using var file = SafetensorsFile.Open(Path.Combine(folder, state.File), strict: true);
            if (file.Tensors.Count != state.Slices.Count || state.Slices.Any(slice => !Matches(file, slice.Entry, null, [slice.End - slice.Begin])))
                yield return new ConfigError("CKPT023", $"{folder}: the slices of {Printable.Quote(state.File)} are not those of the manifest; restore the folder from a copy.");
        }
    }

    private static bool Matches(SafetensorsFile file, string name, SafetensorsDType? dtype, long[] shape) =>
        file.Tensors.TryGetValue(name, out var entry) && (dtype is null || entry.DType == dtype) && entry.Shape.AsSpan().SequenceEqual(shape);

    private static void ThrowIfAny(IEnumerable<ConfigError> errors)
    {
        var found = errors.Take(ErrorsMax).ToList();
        if (found.Count > 0) throw new ConfigException(found);
    }
}
