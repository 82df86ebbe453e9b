using System.Collections.Concurrent;
using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>How much of a checkpoint is read before it is trusted.</summary>
public enum CheckpointVerification
{
    /// <summary>Manifest, file set, lengths, headers and the hash of every file.</summary>
    Full,

    /// <summary>All but the hashes of safetensors files: for a reader that compares <see cref="CheckpointManifest.WeightHash"/> with what it has read.</summary>
    SmallFiles,

    /// <summary>All but the hashes.</summary>
    Sizes,
}

/// <summary>
/// How the files of a checkpoint are divided among the ranks that verify it together: each reads its share, and all learn whether one has failed.
/// </summary>
/// <param name="Rank">This rank.</param>
/// <param name="Size">All ranks.</param>
/// <param name="AnyFailed">True on every rank when one passes true; entered by all.</param>
public sealed record VerificationShare(int Rank, int Size, Func<bool, bool> AnyFailed)
{
    /// <summary>Nobody to share with.</summary>
    public static VerificationShare Alone { get; } = new(0, 1, static failed => failed);

    /// <summary>True for the files of this rank.</summary>
    public bool Has(int index) => index % Size == Rank;
}

/// <summary>Checks a checkpoint folder against its manifest, before anything of it is loaded.</summary>
internal static class CheckpointVerifier
{
    private const int ErrorsMax = 20;
    private const int ThreadsMax = 4;

    /// <summary>Verifies a folder: manifest and file set wholly, the content of the files that are this rank's.</summary>
    /// <exception cref="ConfigException">
    /// CKPT010 to CKPT013 the manifest; CKPT020 file set; CKPT021 lengths; CKPT022 hashes; CKPT023 headers; CKPT024 another rank found one of these;
    /// ST0xx a file is refused.
    /// </exception>
    public static CheckpointManifest Verify(string folder, CheckpointVerification level, VerificationShare share)
    {
        CheckpointManifest? manifest = null;
        Exception? problem = null;
        try
        {
            manifest = VerifyShare(folder, level, share);
        }
        catch (Exception exception) when (exception is ConfigException or IOException or UnauthorizedAccessException)
        {
            problem = exception as ConfigException ?? new ConfigException("CKPT022", $"{folder} cannot be read ({exception.Message.TrimEnd('.')}); check the disk and its permissions.");
        }
        var anyFailed = share.AnyFailed(problem is not null);
        if (problem is not null) throw problem;
        if (manifest is null || anyFailed) throw new ConfigException("CKPT024", $"{folder}: another rank found the checkpoint damaged; see its message.");
        return manifest;
    }

    private static CheckpointManifest VerifyShare(string folder, CheckpointVerification level, VerificationShare share)
    {
        var manifest = CheckpointStore.ReadManifest(folder);
        ThrowIfAny(CompareFileSet(folder, manifest));
        ThrowIfAny(CompareLengths(folder, manifest));
        if (level == CheckpointVerification.Full) ThrowIfAny(CompareHashes(folder, manifest.Files, share));
        if (level == CheckpointVerification.SmallFiles) ThrowIfAny(CompareHashes(folder, manifest.Files.Where(file => !file.Name.EndsWith(".safetensors", StringComparison.Ordinal)), share));
        ThrowIfAny(CompareHeaders(folder, manifest, share));
        return manifest;
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

    private static List<ConfigError> CompareHashes(string folder, IEnumerable<CheckpointFile> files, VerificationShare share)
    {
        // Largest first, so that the threads end together.
        var own = files.OrderByDescending(file => file.SizeBytes).Where((_, index) => share.Has(index)).ToList();
        var errors = new ConcurrentBag<ConfigError>();
        FileThreads.ForEach(own, ThreadsMax, own.Sum(file => file.SizeBytes), file =>
        {
            if (WeightHashes.HashPlain(Path.Combine(folder, file.Name), file.Name).XxHash128 != file.XxHash128)
                errors.Add(new ConfigError("CKPT022", $"{folder}: the content of {Printable.Quote(file.Name)} is not what was saved (hash differs); restore the folder from a copy."));
        });
        return [.. errors.OrderBy(error => error.Message, StringComparer.Ordinal)];
    }

    private static IEnumerable<ConfigError> CompareHeaders(string folder, CheckpointManifest manifest, VerificationShare share)
    {
        foreach (var group in manifest.Tensors.GroupBy(tensor => tensor.File, StringComparer.Ordinal).Where((_, index) => share.Has(index)))
        {
            if (group.Key is null) continue;
            using var file = SafetensorsFile.Open(Path.Combine(folder, group.Key), strict: true);
            var expected = group.ToList();
            if (file.Tensors.Count != expected.Count || expected.Any(tensor => !Matches(file, tensor.Name, tensor.DType, tensor.Shape)))
                yield return new ConfigError("CKPT023", $"{folder}: the tensors of {Printable.Quote(group.Key)} are not those of the manifest; restore the folder from a copy.");
        }
        foreach (var state in manifest.State.Where((_, index) => share.Has(index)))
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
