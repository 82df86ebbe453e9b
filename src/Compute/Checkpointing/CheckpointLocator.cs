using System.Text.RegularExpressions;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Checkpointing;

/// <summary>Finds what <c>--load</c> (or <c>--mcore_model</c>) names, and says in one sentence what is wrong otherwise.</summary>
public static partial class CheckpointLocator
{
    /// <summary>
    /// Finds the checkpoint: the newest verified one of a run's folder, or exactly the <c>iter_…</c> folder that is named.
    /// </summary>
    /// <param name="path">Folder of a run, or a checkpoint folder in it.</param>
    /// <param name="level">How much is verified.</param>
    /// <param name="time">Passed to the store.</param>
    /// <returns>Found is null only when the run's folder has no checkpoint at all: the caller decides by <c>--exit_on_missing_checkpoint</c>,
    /// see <see cref="Missing"/>.</returns>
    /// <exception cref="ConfigException">CKPT001 no such folder; CKPT002 another kind of folder; CKPT003 every checkpoint is damaged; CKPT01x,
    /// CKPT02x the named checkpoint is damaged.</exception>
    public static CheckpointSearch Find(string path, CheckpointVerification level, TimeProvider time) => Find(path, level, time, VerificationShare.Alone);

    /// <summary>The same for ranks that verify together: each reads its share of the files, and all come to the same answer.</summary>
    public static CheckpointSearch Find(string path, CheckpointVerification level, TimeProvider time, VerificationShare share)
    {
        var folder = Path.TrimEndingDirectorySeparator(Path.GetFullPath(path));
        if (!Directory.Exists(folder)) throw new ConfigException("CKPT001", $"--load {path}: there is no such folder; check the path.");
        if (FolderPattern().IsMatch(Path.GetFileName(folder))) return new CheckpointSearch(new StoredCheckpoint(folder, CheckpointVerifier.Verify(folder, level, share)), []);
        var store = new CheckpointStore(folder, time);
        if (store.Folders().Count == 0)
        {
            if (File.Exists(Path.Combine(folder, "config.json"))) throw new ConfigException("CKPT002", $"--load {path} is a Hugging Face model folder, no checkpoint; give it by --model.");
            return new CheckpointSearch(null, []);
        }
        var search = store.FindNewestVerified(level, share);
        return search.Found is not null ? search : throw Damaged(path, store, search);
    }

    /// <summary>True for a folder that is itself a checkpoint of ours, sound or not.</summary>
    public static bool IsCheckpoint(string folder) =>
        File.Exists(Path.Combine(folder, CheckpointManifest.FileName)) || (Directory.Exists(folder) && FolderPattern().IsMatch(Path.GetFileName(folder)) && !File.Exists(Path.Combine(folder, ".metadata")));

    /// <summary>The checkpoints of a run's folder, newest first; nothing in them is read.</summary>
    /// <exception cref="ConfigException">CKPT001 no such folder; CKPT002 there are none.</exception>
    public static IReadOnlyList<string> List(string folder, TimeProvider time)
    {
        if (!Directory.Exists(folder)) throw new ConfigException("CKPT001", $"{folder} is no folder; check the path.");
        var folders = new CheckpointStore(folder, time).Folders();
        return folders.Count > 0
            ? [.. folders.Select(entry => entry.Folder)]
            : throw new ConfigException("CKPT002", $"{folder} holds no checkpoint (no iter_0000000 folder); give the folder of a run or of one checkpoint.");
    }

    /// <summary>The error for a folder without checkpoints when <c>--exit_on_missing_checkpoint</c> is true.</summary>
    public static ConfigException Missing(string path) =>
        new("CKPT004", $"--load {path} holds no checkpoint (no iter_0000000 folder); check the path, or give --exit_on_missing_checkpoint false to start from --model.");

    private static ConfigException Damaged(string path, CheckpointStore store, CheckpointSearch search)
    {
        var newest = store.Folders()[0].Folder;
        if (!File.Exists(Path.Combine(newest, CheckpointManifest.FileName)) && Directory.EnumerateFiles(newest).Any(file => Path.GetExtension(file) is ".distcp" or ".pt"))
            return new ConfigException("CKPT002", $"--load {path} was written by Megatron-LM; convert its weights with megatron export --to_hf --mcore_model {path} --model FOLDER_WITH_CONFIG and give the result by --model.");
        return new ConfigException([new ConfigError("CKPT003", $"--load {path}: none of its {store.Folders().Count} checkpoints can be used; restore one from a copy or start from --model."),
            .. search.Notices.Take(19).Select(notice => new ConfigError("CKPT003", notice))]);
    }

    [GeneratedRegex(@"^iter_\d{7,}$", RegexOptions.CultureInvariant)]
    private static partial Regex FolderPattern();
}
