using System.Globalization;
using System.IO.Hashing;
using System.Reflection;
using System.Text;
using Megatron.Compute.Configuration;
using Megatron.Compute.Native;

namespace Megatron.Compute.Checkpointing;

/// <summary>
/// The checkpoints of a run: one folder <c>iter_0000100</c> for each, under a root that all ranks share. A save goes into
/// <c>.tmp-attempt-saveId</c>, is committed by one rename, and counts only while its manifest verifies;
/// <c>latest_checkpointed_iteration.txt</c> is a hint for people and tools.
/// </summary>
/// <remarks>
/// Protocol of a save: every rank calls <see cref="BeginSave"/> and <see cref="CheckpointWriter.WriteRank"/>; the control plane collects the
/// parts; rank 0 calls <see cref="Commit"/>. A failure at any point leaves a temporary folder for <see cref="CollectGarbage"/> and never
/// harms what was committed. File operations are announced to the constructor's <c>beforeStep</c>, through which tests inject faults.
/// </remarks>
public sealed class CheckpointStore
{
    /// <summary>Holds the newest committed iteration as text.</summary>
    public const string HintFileName = "latest_checkpointed_iteration.txt";

    private const string TemporaryPrefix = ".tmp-";
    private const string DeletingPrefix = ".deleting-";
    // Hashing shares the machine with the next training step.
    private const int HashThreadsMax = 2;

    private static readonly TimeSpan garbageAge = TimeSpan.FromHours(1);

    private readonly TimeProvider time;
    private readonly Action<string> beforeStep;

    /// <summary>Absolute path of the root folder.</summary>
    public string Root { get; }

    /// <param name="root">Root folder; made by the first save.</param>
    /// <param name="time">Gives the creation time in manifests and the age of garbage.</param>
    /// <param name="beforeStep">Called with the name of each file operation before it is done; null in the program.</param>
    public CheckpointStore(string root, TimeProvider time, Action<string>? beforeStep = null) =>
        (Root, this.time, this.beforeStep) = (Path.GetFullPath(root), time, beforeStep ?? (static _ => { }));

    /// <summary>Folder name of an iteration, <c>iter_0000100</c>.</summary>
    public static string FolderName(long iteration) => string.Create(CultureInfo.InvariantCulture, $"iter_{iteration:D7}");

    /// <summary>
    /// Makes the temporary folder of a save, if there is room. Called by every rank; the folder of one save is the same for all of them.
    /// </summary>
    /// <param name="attempt">The attempt of the job.</param>
    /// <param name="saveId">Letters, digits and dashes; never used twice by an attempt.</param>
    /// <param name="sizeBytes">Bytes of the whole checkpoint; a fifth more must be free.</param>
    /// <exception cref="IOException">Too little space, or the folder cannot be made: skip this save and go on training.</exception>
    public string BeginSave(int attempt, string saveId, long sizeBytes)
    {
        Directory.CreateDirectory(Root);
        var free = new DriveInfo(Root).AvailableFreeSpace;
        var needed = sizeBytes + sizeBytes / 5;
        if (free < needed)
            throw new IOException(string.Create(CultureInfo.InvariantCulture, $"A checkpoint needs {needed >> 20} MiB (a fifth more than its size), {Root} has {free >> 20} MiB free; free some space or set --save_total_limit."));
        var folder = TemporaryFolder(attempt, saveId);
        beforeStep("make " + Path.GetFileName(folder));
        Directory.CreateDirectory(folder);
        return folder;
    }

    /// <summary>
    /// Makes the save a checkpoint: re-reads lengths, hashes the weight files, writes the manifest, syncs, renames, updates the hint. Called
    /// by rank 0 after the control plane holds the parts of all ranks; repeating it after success changes nothing.
    /// </summary>
    /// <returns>The final folder and its manifest.</returns>
    /// <exception cref="IOException">A file is missing or has another length, the attempt is stale, or the disk failed: nothing is committed.</exception>
    public StoredCheckpoint Commit(string saveId, RunFacts run, IReadOnlyList<RankPart> parts)
    {
        var temporary = TemporaryFolder(run.Attempt, saveId);
        var previous = NewestManifest();
        if (!Directory.Exists(temporary))
        {
            // The command may arrive twice; the second time finds the work done.
            if (previous is { } last && last.Manifest.SaveId == saveId && last.Manifest.Run.Attempt == run.Attempt && last.Manifest.Run.JobId == run.JobId)
                return new StoredCheckpoint(last.Folder, last.Manifest);
            throw new IOException($"The save {saveId} of attempt {run.Attempt} has no folder {temporary}; it was never begun.");
        }
        if (previous is { } newest && newest.Manifest.Run.JobId == run.JobId && newest.Manifest.Run.Attempt > run.Attempt)
            throw new IOException($"Attempt {run.Attempt} of job {run.JobId} may not commit: attempt {newest.Manifest.Run.Attempt} has committed {newest.Folder}.");
        var manifest = BuildManifest(temporary, saveId, run, parts, previous?.Hash);
        var json = manifest.ToJson();
        try
        {
            CheckpointManifest.Parse(json, "the manifest to be committed");
        }
        catch (ConfigException exception)
        {
            throw new IOException($"The parts of save {saveId} do not make a checkpoint: {exception.Message}");
        }
        Step("write manifest", () => HfFolderWriter.WriteFile(temporary, CheckpointManifest.FileName, json));
        Step("sync folder", () => FileSync.FlushPath(temporary));
        var final = Path.Combine(Root, FolderName(run.Trainer.Iteration));
        Publish(temporary, final, run.Attempt, saveId);
        Step("write hint", () => FileSync.ReplaceFile(Path.Combine(Root, HintFileName), Encoding.ASCII.GetBytes(run.Trainer.Iteration.ToString(CultureInfo.InvariantCulture))));
        return new StoredCheckpoint(final, manifest);
    }

    /// <summary>
    /// The newest checkpoint that verifies. Damaged ones are passed over with a notice each; nothing is deleted.
    /// </summary>
    /// <param name="level">How much is read.</param>
    /// <param name="share">Ranks that search together, and come to the same answer; null: this one alone.</param>
    public CheckpointSearch FindNewestVerified(CheckpointVerification level, VerificationShare? share = null)
    {
        var notices = new List<string>();
        long? newest = null;
        foreach (var (iteration, folder) in Folders())
        {
            newest ??= iteration;
            try
            {
                var manifest = CheckpointVerifier.Verify(folder, level, share ?? VerificationShare.Alone);
                if (newest > iteration) notices.Add($"Going back to {folder}: {newest - iteration} iterations are lost.");
                return new CheckpointSearch(new StoredCheckpoint(folder, manifest), notices);
            }
            catch (ConfigException exception)
            {
                notices.Add($"{folder} is passed over, it is damaged or incomplete: {exception.Errors[0]}");
            }
        }
        return new CheckpointSearch(null, notices);
    }

    /// <summary>
    /// Deletes old checkpoints, oldest first, until <paramref name="keep"/> are left. The newest one that verifies is never deleted, however
    /// old it is, nor is <paramref name="inUse"/>.
    /// </summary>
    /// <param name="keep">Checkpoints to keep, at least 1.</param>
    /// <param name="level">How much is read to tell which one verifies: after a commit the newest one has just been written.</param>
    /// <param name="inUse">Folder that a job is loading, or null.</param>
    /// <returns>Folders deleted.</returns>
    public IReadOnlyList<string> Prune(int keep, CheckpointVerification level, string? inUse = null)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(keep, 1);
        var excess = Folders().Skip(keep).Select(entry => entry.Folder).Reverse().ToList();
        if (excess.Count == 0) return [];
        var newestVerified = FindNewestVerified(level).Found?.Folder;
        var deleted = excess.Where(folder => folder != newestVerified && folder != inUse).ToList();
        foreach (var folder in deleted) Delete(folder, Path.Combine(Root, DeletingPrefix + Path.GetFileName(folder)));
        return deleted;
    }

    /// <summary>
    /// Deletes what failed saves and interrupted deletions left: folders of attempts before <paramref name="attempt"/>, and those older than
    /// one hour. Called when an attempt starts.
    /// </summary>
    /// <returns>Folders deleted.</returns>
    public IReadOnlyList<string> CollectGarbage(int attempt)
    {
        if (!Directory.Exists(Root)) return [];
        var now = time.GetUtcNow().UtcDateTime;
        var garbage = Directory.EnumerateDirectories(Root, ".*").Where(folder => IsGarbage(folder, attempt, now)).Order(StringComparer.Ordinal).ToList();
        foreach (var folder in garbage) Step("delete " + Path.GetFileName(folder), () => Directory.Delete(folder, recursive: true));
        return garbage;
    }

    /// <summary>The manifest of a checkpoint folder, checked in itself; no other file is opened.</summary>
    /// <exception cref="ConfigException">CKPT010 to CKPT014.</exception>
    public static CheckpointManifest ReadManifest(string folder)
    {
        var path = Path.Combine(folder, CheckpointManifest.FileName);
        if (!File.Exists(path)) throw new ConfigException("CKPT010", $"{folder} has no {CheckpointManifest.FileName}; it is no complete checkpoint of this program.");
        return CheckpointManifest.Parse(StrictJson.ReadFile(path, "CKPT010"), path);
    }

    /// <summary>Verifies one checkpoint folder.</summary>
    /// <exception cref="ConfigException">CKPT010 to CKPT023, ST0xx.</exception>
    public static CheckpointManifest Verify(string folder, CheckpointVerification level) => CheckpointVerifier.Verify(folder, level, VerificationShare.Alone);

    /// <summary>Iteration folders, newest first; nothing is opened.</summary>
    internal IReadOnlyList<(long Iteration, string Folder)> Folders() => !Directory.Exists(Root)
        ? []
        : [.. Directory.EnumerateDirectories(Root, "iter_*").Select(folder => (Iteration: IterationOf(Path.GetFileName(folder)), Folder: folder))
            .Where(entry => entry.Iteration >= 0).OrderByDescending(entry => entry.Iteration)];

    private CheckpointManifest BuildManifest(string folder, string saveId, RunFacts run, IReadOnlyList<RankPart> parts, string? previousHash)
    {
        var ordered = parts.OrderBy(part => part.Rank).ToList();
        var pieces = ordered.Select(part => ParsePart(part)).ToList();
        foreach (var file in ordered.SelectMany(part => part.Files))
        {
            var info = new FileInfo(Path.Combine(folder, file.Name));
            if (!info.Exists || info.Length != file.SizeBytes)
                throw new IOException($"{info.FullName} has {(info.Exists ? info.Length : 0)} bytes, its rank reported {file.SizeBytes}.");
        }
        beforeStep("hash weights");
        var tensors = pieces.SelectMany(piece => piece.Tensors).ToList();
        var hasWeights = tensors.All(tensor => tensor.File is not null);
        if (hasWeights) CheckWritten(tensors, pieces.SelectMany(piece => piece.Written));
        var known = ordered.SelectMany(part => part.Files).Select(file => file.Name).ToHashSet(StringComparer.Ordinal);
        var rest = HashRest(folder, [.. tensors.Select(tensor => tensor.File).OfType<string>().Distinct(StringComparer.Ordinal).Where(name => !known.Contains(name))]);
        return new CheckpointManifest
        {
            FormatVersion = CheckpointManifest.CurrentVersion,
            Writer = $"Megatron.Orleans {typeof(CheckpointStore).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion}",
            CreatedUtc = time.GetUtcNow(),
            SaveId = saveId,
            Run = run,
            ModelConfigHash = ConfigFacts.Hash(run.ModelConfig),
            Files = [.. rest.Select(file => file.File), .. ordered.SelectMany(part => part.Files)],
            Tensors = tensors,
            State = [.. pieces.Select(piece => piece.State).OfType<ManifestStateFile>()],
            WeightHash = hasWeights ? WeightHashes.Combine(rest.SelectMany(file => file.Tensors).Concat(pieces.SelectMany(piece => piece.Hashes))) : null,
            PreviousManifestHash = previousHash,
        };
    }

    /// <summary>Hashes the weight files that several ranks wrote, a few at a time.</summary>
    private static HashedFile[] HashRest(string folder, IReadOnlyList<string> names)
    {
        var hashed = new HashedFile[names.Count];
        try
        {
            var sizeBytes = names.Sum(name => new FileInfo(Path.Combine(folder, name)) is { Exists: true } info ? info.Length : 0);
            FileThreads.ForEach([.. Enumerable.Range(0, names.Count)], HashThreadsMax, sizeBytes, index => hashed[index] = WeightHashes.Hash(Path.Combine(folder, names[index]), names[index]));
        }
        catch (ConfigException exception)
        {
            throw new IOException(exception.Message);
        }
        return hashed;
    }

    private static ManifestPart ParsePart(RankPart part)
    {
        try
        {
            return StrictJson.Parse<ManifestPart>(Encoding.UTF8.GetBytes(part.ManifestPart), "CKPT010", $"the receipt of rank {part.Rank}");
        }
        catch (ConfigException exception)
        {
            throw new IOException(exception.Message);
        }
    }

    /// <summary>A block of a weight that no rank wrote would be zero in the file, and nobody would notice.</summary>
    private static void CheckWritten(List<ManifestTensor> tensors, IEnumerable<WrittenBlock> written)
    {
        var ranges = written.ToLookup(block => block.Tensor, block => BlockRange.Whole(block.Offset, block.Shape), StringComparer.Ordinal);
        foreach (var tensor in tensors)
            if (SliceCover.Problem(tensor.Shape, ranges[tensor.Name]) is { } problem)
                throw new IOException($"The ranks did not write tensor {tensor.Name} exactly once: {problem}.");
    }

    /// <summary>Gives the folder its final name. An older checkpoint of the same iteration is exchanged in one step where the file system can.</summary>
    private void Publish(string temporary, string final, int attempt, string saveId)
    {
        if (!Directory.Exists(final))
        {
            Step("rename", () => FileSync.Rename(temporary, final));
            Step("sync root", () => FileSync.FlushPath(Root));
            return;
        }
        var deleting = Path.Combine(Root, $"{DeletingPrefix}{Path.GetFileName(final)}-{attempt}-{saveId}");
        var exchanged = false;
        Step("exchange", () => exchanged = FileSync.TryExchange(temporary, final));
        if (!exchanged)
        {
            Step("move old away", () => FileSync.Rename(final, deleting));
            Step("rename", () => FileSync.Rename(temporary, final));
        }
        Step("sync root", () => FileSync.FlushPath(Root));
        if (exchanged) Delete(temporary, deleting);
        else Step("delete old", () => Directory.Delete(deleting, recursive: true));
    }

    private void Delete(string folder, string deleting)
    {
        Step("rename for deletion", () => FileSync.Rename(folder, deleting));
        Step("delete old", () => Directory.Delete(deleting, recursive: true));
    }

    private (string Folder, CheckpointManifest Manifest, string Hash)? NewestManifest()
    {
        foreach (var (_, folder) in Folders())
        {
            try
            {
                var path = Path.Combine(folder, CheckpointManifest.FileName);
                var json = StrictJson.ReadFile(path, "CKPT010");
                return (folder, CheckpointManifest.Parse(json, path), Convert.ToHexStringLower(XxHash128.Hash(json)));
            }
            catch (ConfigException)
            {
                // A damaged one is no link of the chain; loading reports it.
            }
        }
        return null;
    }

    private bool IsGarbage(string folder, int attempt, DateTime now)
    {
        var name = Path.GetFileName(folder);
        if (name.StartsWith(DeletingPrefix, StringComparison.Ordinal)) return true;
        if (!name.StartsWith(TemporaryPrefix, StringComparison.Ordinal)) return false;
        var owner = name.AsSpan(TemporaryPrefix.Length);
        var dash = owner.IndexOf('-');
        var isOlder = dash > 0 && int.TryParse(owner[..dash], NumberStyles.None, CultureInfo.InvariantCulture, out var number) && number < attempt;
        return isOlder || now - Directory.GetLastWriteTimeUtc(folder) > garbageAge;
    }

    /// <summary>Folder of a save that is not committed.</summary>
    internal string TemporaryFolder(int attempt, string saveId)
    {
        if (saveId.Length is 0 or > 100 || !saveId.All(character => char.IsAsciiLetterOrDigit(character) || character == '-'))
            throw new ArgumentException($"The save id {Printable.Quote(saveId)} is not made of letters, digits and dashes.", nameof(saveId));
        return Path.Combine(Root, string.Create(CultureInfo.InvariantCulture, $"{TemporaryPrefix}{attempt}-{saveId}"));
    }

    private void Step(string name, Action action)
    {
        beforeStep(name);
        action();
    }

    private static long IterationOf(string name) =>
        long.TryParse(name.AsSpan(5), NumberStyles.None, CultureInfo.InvariantCulture, out var iteration) && FolderName(iteration) == name ? iteration : -1;
}

/// <summary>A committed checkpoint.</summary>
/// <param name="Folder">Absolute path of <c>iter_…</c>.</param>
/// <param name="Manifest">Its manifest.</param>
public sealed record StoredCheckpoint(string Folder, CheckpointManifest Manifest);

/// <summary>Result of a search.</summary>
/// <param name="Found">The newest checkpoint that verifies; null when there is none.</param>
/// <param name="Notices">What was passed over and why: to be shown to the user.</param>
public sealed record CheckpointSearch(StoredCheckpoint? Found, IReadOnlyList<string> Notices);
