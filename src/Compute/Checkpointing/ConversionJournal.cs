using Megatron.Compute.Configuration;
using Megatron.Compute.Native;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// What a conversion has finished, in a file of its folder: after an interruption the same command goes on with the next weight file. A conversion
/// of other weights, or with other settings, starts anew.
/// </summary>
public sealed class ConversionJournal : IDisposable
{
    /// <summary>Name of the file.</summary>
    public const string FileName = "conversion.json";

    private const string LockName = "conversion.lock";

    private readonly string path;
    private readonly FileStream guard;
    private Content content;

    /// <summary>Weight files that an earlier attempt has finished.</summary>
    public int NumFinished => content.Files.Count;

    private ConversionJournal(string path, FileStream guard, Content content) => (this.path, this.guard, this.content) = (path, guard, content);

    /// <summary>Opens the folder of a conversion and makes it when it is not there.</summary>
    /// <param name="folder">Belongs to this conversion alone.</param>
    /// <param name="fingerprint">Source and settings; what another one has left is deleted.</param>
    /// <exception cref="ConfigException">DISK004: another process is converting into it.</exception>
    /// <exception cref="IOException">The folder cannot be made or cleared.</exception>
    public static ConversionJournal Open(string folder, string fingerprint)
    {
        Directory.CreateDirectory(folder);
        FileStream guard;
        try
        {
            guard = new FileStream(Path.Combine(folder, LockName), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
        }
        catch (IOException)
        {
            throw new ConfigException("DISK004", $"{folder} is in use: another megatron export writes there; wait for it, or give another --output_dir.");
        }
        var path = Path.Combine(folder, FileName);
        if (TryRead(path) is { } content && content.Fingerprint == fingerprint) return new ConversionJournal(path, guard, content);
        foreach (var entry in Directory.EnumerateFileSystemEntries(folder).Where(entry => Path.GetFileName(entry) != LockName).ToList())
        {
            if (Directory.Exists(entry)) Directory.Delete(entry, recursive: true);
            else File.Delete(entry);
        }
        return new ConversionJournal(path, guard, new Content(fingerprint, []));
    }

    /// <summary>A finished weight file; null when it must be written (again).</summary>
    internal HashedFile? Find(string folder, HfShard shard)
    {
        var found = content.Files.FirstOrDefault(file => file.File.Name == shard.FileName);
        var info = new FileInfo(Path.Combine(folder, shard.FileName));
        return found is not null && info.Exists && info.Length == found.File.SizeBytes && found.Tensors.Count == shard.Tensors.Count ? found : null;
    }

    /// <summary>Remembers a file that is on the device.</summary>
    internal void Add(HashedFile file)
    {
        content = content with { Files = [.. content.Files.Where(known => known.File.Name != file.File.Name), file] };
        FileSync.ReplaceFile(path, StrictJson.Write(content));
    }

    /// <summary>Removes the journal: the conversion is complete.</summary>
    public void Close()
    {
        Dispose();
        File.Delete(path);
        File.Delete(Path.Combine(Path.GetDirectoryName(path) ?? ".", LockName));
    }

    /// <inheritdoc/>
    public void Dispose() => guard.Dispose();

    private static Content? TryRead(string path)
    {
        if (!File.Exists(path)) return null;
        try
        {
            return StrictJson.Parse<Content>(StrictJson.ReadFile(path, "DISK004"), "DISK004", path);
        }
        catch (ConfigException)
        {
            return null; // a torn journal is no journal
        }
    }

    private sealed record Content(string Fingerprint, IReadOnlyList<HashedFile> Files);
}
