using System.IO.Hashing;
using System.Runtime.InteropServices;
using System.Text.Json;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;
using Megatron.Compute.Native;

namespace Megatron.Compute.Data.Prepared;

/// <summary>
/// Writes the prepared form of one source. Chunks are appended in order; after each batch of them <see cref="SaveProgress"/> notes how far the files
/// are valid, so that a killed preparation goes on from there. <see cref="Commit"/> makes it valid as a whole. One writer at a time.
/// </summary>
internal sealed class PreparedWriter : IDisposable
{
    private readonly string _folder;
    private readonly FileStream _data;
    private readonly FileStream _samples;
    private readonly FileStream _rows;
    private readonly DroppedRows _dropped;
    private readonly DataNotices _notices = new();
    private readonly List<FateReason> _reasons = [];
    private readonly List<RowProblem> _firstMisfits = [];
    private readonly List<RowProblem> _firstDeleted = [];
    private readonly bool _strict;
    private PreparedFacts _facts;

    /// <summary>Opens the folder and takes up what an earlier writer left of the same source and settings.</summary>
    /// <param name="folder">Folder of the fingerprint.</param>
    /// <param name="start">Source and settings, nothing counted.</param>
    /// <param name="strict">End at the first bad row.</param>
    public PreparedWriter(string folder, PreparedFacts start, bool strict)
    {
        (_folder, _strict) = (folder, strict);
        Directory.CreateDirectory(folder);
        _data = Open(PreparedFiles.Data);
        _samples = Open(PreparedFiles.Samples);
        _rows = Open(PreparedFiles.Rows);
        _facts = ReadProgress() ?? start;
        Truncate(_data, _facts.NumDataBytes);
        Truncate(_samples, (long)_facts.NumSamples * Marshal.SizeOf<SampleEntry>());
        Truncate(_rows, (long)_facts.NumRows * Marshal.SizeOf<RowEntry>());
        _dropped = new DroppedRows(start.Source, strict);
        _dropped.AddAll(_facts.Dropped);
        _notices.Add(_facts.Notices);
        _reasons.AddRange(_facts.Reasons);
        _firstMisfits.AddRange(_facts.FirstMisfits);
        _firstDeleted.AddRange(_facts.FirstDeleted);
    }

    /// <summary>Rows of the source that are done.</summary>
    public int NumSourceRows => _facts.NumSourceRows;

    /// <summary>Rows that could not be used, so far.</summary>
    public DroppedRows Dropped => _dropped;

    /// <summary>Appends the next chunk.</summary>
    /// <exception cref="Configuration.ConfigException">A mistake that ends the run: DATA022, or the first bad row with <c>strict</c>.</exception>
    public void Append(EncodedChunk chunk)
    {
        var firstSample = _facts.NumSamples;
        var rows = new List<RowEntry>(chunk.Rows.Count);
        foreach (var row in chunk.Rows)
        {
            if (row.Unusable is not null)
            {
                _dropped.Add(row.Unusable);
                continue;
            }
            if (_strict && row is { IsMisfit: true, Fate: { } misfit }) throw new Configuration.ConfigException([misfit.ToError()]);
            rows.Add(new RowEntry(row.Row.Offset, row.NumBytes, row.Row.Number, row.Row.Line, firstSample, FateOf(row), row.Flags));
            firstSample += row.NumSamples;
        }
        if (chunk.Fatal is { } fatal) throw new Configuration.ConfigException([fatal]);
        foreach (var sample in chunk.Samples)
        {
            var entry = sample with { Offset = sample.Offset + _facts.NumDataBytes };
            _samples.Write(MemoryMarshal.AsBytes(new ReadOnlySpan<SampleEntry>(in entry)));
        }
        _data.Write(chunk.Bytes);
        _rows.Write(MemoryMarshal.AsBytes(CollectionsMarshal.AsSpan(rows)));
        _notices.Add(chunk.Notices.Counts);
        _facts = _facts with
        {
            NumSourceRows = _facts.NumSourceRows + chunk.Rows.Count,
            NumRows = _facts.NumRows + rows.Count,
            NumSamples = firstSample,
            NumTokens = _facts.NumTokens + chunk.NumTokens,
            NumDataBytes = _facts.NumDataBytes + chunk.Bytes.Length,
            ContentHash = Chain(_facts.ContentHash, chunk.Hash),
        };
    }

    /// <summary>Notes how far the files are valid; a later writer goes on from here.</summary>
    public void SaveProgress()
    {
        foreach (var file in (FileStream[])[_data, _samples, _rows]) file.Flush();
        WriteFacts(PreparedFiles.Progress);
    }

    /// <summary>Makes the prepared source valid: on disk as a whole, or not at all.</summary>
    public void Commit()
    {
        foreach (var file in (FileStream[])[_data, _samples, _rows]) file.Flush(flushToDisk: true);
        WriteFacts(PreparedFiles.Facts);
        FileSync.FlushPath(_folder);
        File.Delete(Path.Combine(_folder, PreparedFiles.Progress));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _data.Dispose();
        _samples.Dispose();
        _rows.Dispose();
    }

    private FileStream Open(string name) =>
        new(Path.Combine(_folder, name), FileMode.OpenOrCreate, FileAccess.Write, FileShare.Read, bufferSize: 1 << 20);

    private static void Truncate(FileStream file, long length)
    {
        file.SetLength(length);
        file.Position = length;
    }

    private PreparedFacts? ReadProgress()
    {
        if (PreparedFiles.ReadFacts(Path.Combine(_folder, PreparedFiles.Progress)) is not { } progress) return null;
        // After a power failure the note may have outlived the bytes that it speaks of.
        var isWhole = _data.Length >= progress.NumDataBytes && _samples.Length >= (long)progress.NumSamples * Marshal.SizeOf<SampleEntry>()
            && _rows.Length >= (long)progress.NumRows * Marshal.SizeOf<RowEntry>();
        return isWhole ? progress : null;
    }

    private short FateOf(EncodedChunk.RowResult row)
    {
        if (row.Fate is not { } problem) return 0;
        var first = row.IsMisfit ? _firstMisfits : _firstDeleted;
        if (first.Count < DroppedRows.NumShown) first.Add(problem);
        var reason = new FateReason(problem.Code, problem.Reason, row.IsMisfit);
        if (!_reasons.Contains(reason)) _reasons.Add(reason);
        return (short)(1 + _reasons.IndexOf(reason));
    }

    private void WriteFacts(string name)
    {
        _facts = _facts with
        {
            Dropped = _dropped.State,
            Notices = _notices.Counts,
            Reasons = _reasons,
            FirstMisfits = _firstMisfits,
            FirstDeleted = _firstDeleted,
        };
        var path = Path.Combine(_folder, name);
        using (var file = new FileStream(path + ".tmp", FileMode.Create, FileAccess.Write))
        {
            JsonSerializer.Serialize(file, _facts, PreparedFiles.Json);
            if (name == PreparedFiles.Facts) file.Flush(flushToDisk: true);
        }
        File.Move(path + ".tmp", path, overwrite: true);
    }

    private static string Chain(string before, byte[] next)
    {
        var hash = new XxHash128();
        hash.Append(Convert.FromHexString(before));
        hash.Append(next);
        return Convert.ToHexStringLower(hash.GetCurrentHash());
    }
}
