using System.Runtime.ExceptionServices;
using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Data.Sources;

namespace Megatron.Compute.Data.Prepared;

/// <summary>
/// Encodes the rows of one source into a <see cref="PreparedWriter"/>: rows are read in order, cut into chunks, encoded on
/// <c>dataset_num_proc</c> threads and appended in order. What is written does not depend on the number of threads, nor on a kill in between.
/// </summary>
/// <param name="parser">Row → conversation.</param>
/// <param name="encoder">Conversation → samples; null keeps the rows as they are.</param>
/// <param name="numThreads"><c>dataset_num_proc</c>.</param>
internal sealed class SourcePreparation(RowParser parser, SampleEncoder? encoder, int numThreads)
{
    private const int ChunkBytes = 256 << 10;
    private const int ChunkRows = 1024;
    private const int ChunksPerThread = 4;
    private const int HopelessRows = 1000;

    /// <summary>Reads the source from where the writer stands to its end and commits.</summary>
    /// <param name="path">The source file.</param>
    /// <param name="writer">Gets the chunks.</param>
    /// <param name="progress">Gets a line now and then.</param>
    /// <param name="cancellation">Ends the preparation between two batches of chunks; what is written stays for the next.</param>
    /// <exception cref="ConfigException">The file or its rows cannot be used.</exception>
    /// <exception cref="OperationCanceledException">It was cancelled.</exception>
    public void Run(string path, PreparedWriter writer, Action<string> progress, CancellationToken cancellation)
    {
        using var rows = RowSources.Open(path);
        for (var i = 0; i < writer.NumSourceRows; i++)
            if (!rows.TryRead(out _)) throw new ConfigException("DATA031", $"{path} became shorter while it was being prepared; start again.");
        if (writer.NumSourceRows > 0) progress($"{path}: preparation goes on after row {writer.NumSourceRows}");
        var nextReport = NextReport(writer.NumSourceRows);
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            var chunks = ReadChunks(rows);
            if (chunks.Count == 0) break;
            foreach (var chunk in EncodeAll(chunks)) writer.Append(chunk);
            if (writer.Dropped.State.NumUnreadable > Math.Max(HopelessRows, writer.NumSourceRows / 2)) writer.Dropped.Check(writer.NumSourceRows);
            writer.SaveProgress();
            if (writer.NumSourceRows < nextReport) continue;
            progress($"{path}: {writer.NumSourceRows} rows prepared");
            nextReport = NextReport(writer.NumSourceRows);
        }
        if (writer.NumSourceRows == 0) throw new ConfigException("DATA008", $"{path} holds no rows: it is {(new FileInfo(path).Length == 0 ? "empty" : "blank, or has no rows in it")}; check the path.");
        writer.Dropped.Check(writer.NumSourceRows);
        writer.Commit();
    }

    // After 100,000 rows, then at twice as many, and so on: a few lines for any size.
    private static long NextReport(long done)
    {
        var next = 100_000L;
        while (next <= done) next *= 2;
        return next;
    }

    private List<List<SourceRow>> ReadChunks(IRowReader rows)
    {
        var chunks = new List<List<SourceRow>>();
        while (chunks.Count < numThreads * ChunksPerThread)
        {
            var chunk = new List<SourceRow>();
            long bytes = 0;
            while (bytes < ChunkBytes && chunk.Count < ChunkRows && rows.TryRead(out var row))
            {
                chunk.Add(row);
                bytes += row.Json.Length;
            }
            if (chunk.Count == 0) break;
            chunks.Add(chunk);
        }
        return chunks;
    }

    private EncodedChunk[] EncodeAll(List<List<SourceRow>> chunks)
    {
        var encoded = new EncodedChunk[chunks.Count];
        try
        {
            Parallel.For(0, chunks.Count, new ParallelOptions { MaxDegreeOfParallelism = numThreads },
                i => encoded[i] = EncodedChunk.Encode(chunks[i], parser, encoder));
        }
        catch (AggregateException e)
        {
            // One cause is enough: the same fault may have struck several threads.
            ExceptionDispatchInfo.Throw(e.InnerExceptions[0]);
        }
        return encoded;
    }
}
