using System.Globalization;
using Megatron.Compute.Configuration;

namespace Megatron.Compute.Training;

/// <summary>
/// The folder of a run: <c>{save}/v{N}-{yyyyMMdd-HHmmss}</c> with <c>args.json</c>, <c>logging.jsonl</c>, checkpoints. Made once, on the
/// submitting side, before the job starts.
/// </summary>
public static class RunFolder
{
    /// <summary>
    /// Chooses the run's folder and makes it.
    /// </summary>
    /// <param name="save">The user's <c>--save</c>, relative or absolute.</param>
    /// <param name="addVersion">Add <c>v{N}-{time}</c>, N = 1 + the highest version there (0 first).</param>
    /// <param name="time">Source of the time stamp.</param>
    /// <returns>Absolute path, and the highest folder that had to be made for it (null: none).</returns>
    /// <exception cref="ConfigException">DISK001: the folder cannot be made or written; nothing is left behind.</exception>
    public static (string Folder, string? FirstMade) Create(string save, bool addVersion, TimeProvider time)
    {
        var root = Path.GetFullPath(save);
        var folder = addVersion ? Path.Combine(root, VersionName(root, time)) : root;
        var firstMade = FirstMissing(folder);
        try
        {
            Directory.CreateDirectory(folder);
            ProbeWrite(folder);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            RemoveUnused(folder, firstMade);
            throw new ConfigException("DISK001", $"The output folder {folder} cannot be written ({e.Message}); give another --save.");
        }
        return (folder, firstMade);
    }

    /// <summary>
    /// Removes the folder of a run that was refused before its first step, and the folders made above it while they are empty. A folder that
    /// was there before, or that holds a checkpoint or a log, stays.
    /// </summary>
    /// <param name="folder">What <see cref="Create"/> returned.</param>
    /// <param name="firstMade">The highest folder that it made.</param>
    public static void RemoveUnused(string folder, string? firstMade)
    {
        if (firstMade is null || !Directory.Exists(folder)) return;
        if (Directory.EnumerateDirectories(folder, "iter_*").Any() || File.Exists(Path.Combine(folder, "logging.jsonl"))) return;
        Directory.Delete(folder, recursive: true);
        for (var parent = folder; parent != firstMade;)
        {
            parent = Path.GetDirectoryName(parent) ?? firstMade;
            if (Directory.EnumerateFileSystemEntries(parent).Any()) return; // another run lives there by now
            Directory.Delete(parent);
        }
    }

    private static string? FirstMissing(string folder)
    {
        string? missing = null;
        for (var current = folder; current is not null && !Path.Exists(current); current = Path.GetDirectoryName(current)) missing = current;
        return missing;
    }

    private static string VersionName(string root, TimeProvider time)
    {
        var next = 0;
        if (Directory.Exists(root))
            foreach (var path in Directory.EnumerateDirectories(root, "v*"))
                if (TryVersion(Path.GetFileName(path), out var version)) next = Math.Max(next, version + 1);
        return string.Create(CultureInfo.InvariantCulture, $"v{next}-{time.GetLocalNow():yyyyMMdd-HHmmss}");
    }

    private static bool TryVersion(string name, out int version)
    {
        var end = name.IndexOf('-', StringComparison.Ordinal);
        return int.TryParse(name.AsSpan(1, (end < 0 ? name.Length : end) - 1), NumberStyles.None, CultureInfo.InvariantCulture, out version);
    }

    // A folder can exist and still refuse files (read-only mount, full disk), so the check is a real write and rename.
    private static void ProbeWrite(string folder)
    {
        var probe = Path.Combine(folder, ".write-probe");
        File.WriteAllText(probe, "probe");
        File.Move(probe, probe + ".renamed", overwrite: true);
        File.Delete(probe + ".renamed");
    }
}
