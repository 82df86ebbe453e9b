using Megatron.Compute.Configuration;
using Megatron.Compute.Data.Rows;
using Megatron.Compute.Tokenization;

namespace Megatron.Compute.Data.Prepared;

/// <summary>
/// The folder of prepared sources: each is made once, by one writer, and read by all ranks of the node and by later runs with the same source and
/// settings.
/// </summary>
internal sealed class PreparedStore
{
    private static readonly TimeSpan LockPause = TimeSpan.FromMilliseconds(50);

    private readonly string? _root;
    private readonly PreparedSettings _settings;
    private readonly SourcePreparation _preparation;
    private readonly bool _strict;

    /// <param name="config">Data options; without <c>dataset_cache_dir</c> sources are prepared in a temporary folder and gone at the end.</param>
    /// <param name="tokenizer">The model's tokenizer.</param>
    /// <param name="template">Unbound template.</param>
    /// <param name="parser">Row → conversation.</param>
    /// <param name="encoder">Conversation → samples.</param>
    /// <param name="modelVocab">Rows of the embedding.</param>
    public PreparedStore(TrainingConfig config, ITokenizer tokenizer, ChatTemplate template, RowParser parser, SampleEncoder encoder, int modelVocab)
    {
        _root = config.DatasetCacheDir;
        _strict = config.Strict;
        _settings = new PreparedSettings(config, tokenizer, template, modelVocab);
        _preparation = new SourcePreparation(parser, config.LazyTokenize ? null : encoder, Math.Max(1, config.DatasetNumProc));
    }

    /// <summary>Opens the prepared form of a source file, making it first when it is not there.</summary>
    /// <param name="path">The source.</param>
    /// <param name="progress">Gets lines for the user.</param>
    /// <param name="cancellation">Ends the preparation.</param>
    /// <exception cref="ConfigException">The source, or the folder, cannot be used.</exception>
    public PreparedSource Open(string path, Action<string> progress, CancellationToken cancellation)
    {
        if (_root is null) return OpenTemporary(path, progress, cancellation);
        var settings = _settings.Of(path);
        var folder = Path.Combine(_root, PreparedSettings.Fingerprint(settings));
        if (PreparedSource.TryOpen(folder) is { } known) return Reuse(known, path, progress);
        using (TakeLock(folder, path, progress, cancellation))
        {
            if (PreparedSource.TryOpen(folder) is { } other) return Reuse(other, path, progress);
            Prepare(path, folder, settings, progress, cancellation);
        }
        return PreparedSource.TryOpen(folder) ?? throw new InvalidOperationException($"{folder} holds no prepared data after preparation");
    }

    private PreparedSource Reuse(PreparedSource source, string path, Action<string> progress)
    {
        progress($"{path}: prepared data of an earlier start are used again");
        return source;
    }

    private PreparedSource OpenTemporary(string path, Action<string> progress, CancellationToken cancellation)
    {
        var folder = Directory.CreateTempSubdirectory("megatron-data-").FullName;
        try
        {
            Prepare(path, folder, _settings.Of(path), progress, cancellation);
            return PreparedSource.TryOpen(folder) ?? throw new InvalidOperationException($"{folder} holds no prepared data after preparation");
        }
        finally
        {
            // What is mapped stays readable until it is closed.
            Directory.Delete(folder, recursive: true);
        }
    }

    private void Prepare(string path, string folder, IReadOnlyDictionary<string, string> settings, Action<string> progress, CancellationToken cancellation)
    {
        try
        {
            using var writer = new PreparedWriter(folder, new PreparedFacts { Source = path, Settings = settings }, _strict);
            _preparation.Run(path, writer, progress, cancellation);
        }
        catch (ConfigException)
        {
            // Bad input leaves nothing behind; the lock file lives until its holder lets it go.
            foreach (var file in Directory.EnumerateFiles(folder).Where(file => Path.GetFileName(file) != PreparedFiles.Lock)) File.Delete(file);
            throw;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigException("DISK002", $"{path} cannot be prepared in {folder} ({e.Message}); free some space or give another --dataset_cache_dir.");
        }
    }

    private static FileLock TakeLock(string folder, string path, Action<string> progress, CancellationToken cancellation)
    {
        var told = false;
        using var pause = new ManualResetEventSlim();
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            if (FileLock.TryTake(folder) is { } taken) return taken;
            if (!told) progress($"{path} is being prepared by another rank or program: waiting for it");
            told = true;
            pause.Wait(LockPause, cancellation);
        }
    }

    /// <summary>A file held open for writing by one at a time; the system lets it go when its holder dies.</summary>
    private sealed class FileLock(FileStream file, string folder) : IDisposable
    {
        public static FileLock? TryTake(string folder)
        {
            try
            {
                Directory.CreateDirectory(folder);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                throw new ConfigException("DISK002", $"The folder {folder} for prepared data cannot be made ({e.Message}); give another --dataset_cache_dir.");
            }
            try
            {
                return new FileLock(new FileStream(Path.Combine(folder, PreparedFiles.Lock), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None), folder);
            }
            catch (UnauthorizedAccessException e)
            {
                throw new ConfigException("DISK002", $"The folder {folder} for prepared data cannot be written ({e.Message}); give another --dataset_cache_dir.");
            }
            catch (IOException)
            {
                return null;
            }
        }

        public void Dispose()
        {
            file.Dispose();
            // Nothing was prepared: the folder goes as well, unless another writer has come meanwhile.
            if (Directory.EnumerateFiles(folder).All(name => Path.GetFileName(name) == PreparedFiles.Lock)) TryDelete();
        }

        private void TryDelete()
        {
            try
            {
                Directory.Delete(folder, recursive: true);
                if (Path.GetDirectoryName(folder) is { } root) Directory.Delete(root);
            }
            catch (IOException)
            {
                // another writer holds it now and will see to it, or other prepared data lie beside it
            }
        }
    }
}
